"""The one config file: loading, checking, and the part of it that each phase may see.

`load("config/training_config.yaml")` reads the file (and the one it `extends`), checks it against
`forge.schema` and `forge.contradictions`, and returns a `Config`. Every refusal names the key, its file and line, and
the nearest known key. Imports only PyYAML and pydantic: make runs this before the big packages are installed.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from forge import contradictions, schema
from forge.errors import ForgeError
from forge.files import sha256_json
from forge.graph import BY_NAME, Layout
from forge.screening import secrets

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one where PyYAML was built with it: faster

# The names of the older published configs, upper case, and where each lives today.
RENAMED = {
    "MICRO_BATCH_SIZE": "training.per_device_train_batch_size",
    "BATCH_SIZE": "training.per_device_train_batch_size",
    "GRADIENT_ACCUMULATION_STEPS": "training.gradient_accumulation_steps",
    "LEARNING_RATE": "training.learning_rate",
    "NUM_EPOCHS": "training.num_train_epochs",
    "EPOCHS": "training.num_train_epochs",
    "MAX_SEQ_LENGTH": "training.max_length",
    "LORA_R": "lora.r",
    "LORA_ALPHA": "lora.lora_alpha",
    "LORA_DROPOUT": "lora.lora_dropout",
    "BASE_MODEL": "model.base_model_name",
    "MODEL_NAME": "model.base_model_name",
    "max_seq_length": "training.max_length",
    "warmup_ratio": "training.warmup_steps",
    "evaluation_strategy": "training.eval_steps",
}


@dataclass(frozen=True)
class Config:
    """A checked config: `values` is the resolved schema, `path` the file it came from."""

    path: Path
    values: schema.TrainingConfig

    @property
    def layout(self) -> Layout:
        return Layout(self.values.project.name, base_folder(self.values.model.base_model_name))

    def view(self, phase: str) -> dict:
        """Exactly the values that the phase reads, as plain JSON types."""
        whole = self.values.model_dump(mode="json")
        view: dict = {}
        for dotted in BY_NAME[phase].reads:
            source, target = whole, view
            *parents, last = dotted.split(".")
            for part in parents:
                source, target = source[part], target.setdefault(part, {})
            target[last] = source[last]
        return view

    def digest(self, phase: str) -> str:
        return sha256_json(self.view(phase))


def base_folder(name: str) -> Path:
    """Where the base model's files lie: models/base/<org>/<model>/ for every way of naming one."""
    root = Path("models/base")
    if name.startswith("pypi:"):
        package, _, filename = name.removeprefix("pypi:").partition("/")
        return root / re.sub(r"[^A-Za-z0-9._-]+", "-", package) / Path(filename).stem
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] not in "./":
        return root / name
    path = Path(name).expanduser()
    return root / "local" / f"{path.name}-{sha256_json(str(path))[:8]}"


@dataclass
class _Source:
    """One YAML file: its values, and for each key path the line it stands on."""

    path: Path
    values: dict = field(default_factory=dict)
    lines: dict[tuple, int] = field(default_factory=dict)


def load(path: str | Path) -> Config:
    """Read, merge and check a config file. Raises ForgeError (2) with one cause and one remedy."""
    path = Path(path)
    sources = _read_chain(path)
    values: dict = {}
    for source in sources:
        values = _merge(values, source.values)
    for location, text in _texts(values, (), set()):
        if token := secrets.well_known(text):
            raise ForgeError(
                f"{_place(sources, location)}: holds what looks like a {token}",
                "take it out, and revoke it where the file was shared; tokens belong into .env",
            )
    try:
        config = schema.TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, sources) from None
    for dotted, cause, remedy in contradictions.of(config):
        raise ForgeError(f"{_place(sources, tuple(dotted.split('.')))}: {cause}", remedy)
    return Config(path, config)


def _texts(value: object, location: tuple, seen: set[int]) -> Iterable[tuple[tuple, str]]:
    """Every text of the values, with its place; what aliases repeat once."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*location, key), seen)


def _read_chain(path: Path) -> list[_Source]:
    """The file and those it extends, the most general first."""
    chain: list[_Source] = []
    seen: set[Path] = set()
    while True:
        if path.resolve() in seen:
            raise ForgeError(f"{path}: `extends` leads back to itself", "remove one of the extends lines")
        seen.add(path.resolve())
        source = _read(path)
        chain.insert(0, source)
        parent = source.values.pop("extends", None)
        if parent is None:
            return chain
        if not isinstance(parent, str):
            raise ForgeError(f"{path}: extends is not a path", "write extends: ../training_config.yaml")
        path = path.parent / parent


def _read(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ForgeError(
            f"{path} does not exist", "name an existing file: make all CONFIG=config/training_config.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ForgeError(f"{path} cannot be read: {error}", "save it as a UTF-8 text file") from None
    source = _Source(path)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), source, set())
            source.values = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ForgeError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}",
            "check the indentation and the colons of that line",
        ) from None
    except (RecursionError, ValueError, TypeError) as error:
        raise ForgeError(f"{path}: not usable YAML: {error}", "write plain keys and values") from None
    if not isinstance(source.values, dict):
        raise ForgeError(f"{path}: the file is no mapping of sections", "begin with project:, model:, data:")
    return source


def _walk(node: yaml.Node, place: tuple, source: _Source, seen: set[int]) -> None:
    """Note the line of every key and refuse a key that stands twice (YAML itself keeps the last)."""
    if id(node) in seen:  # an alias: its lines are known, and nested aliases would cost exponential time
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # nested ones multiply: a few lines fill the memory
                raise ForgeError(
                    f"{source.path}:{key.start_mark.line + 1}: << is not read here",
                    "write the keys out, or put them into a file that this one extends",
                )
            here = (*place, str(key.value))
            line = key.start_mark.line + 1
            if here in source.lines:
                raise ForgeError(
                    f"{source.path}:{line}: {'.'.join(here)} stands twice, first on line {source.lines[here]}",
                    "keep one of the two",
                )
            source.lines[here] = line
            _walk(value, here, source, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            source.lines[(*place, index)] = value.start_mark.line + 1
            _walk(value, (*place, index), source, seen)


def _merge(base: dict, extra: dict) -> dict:
    """Mappings merge key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _place(sources: list[_Source], location: tuple) -> str:
    """`file:line: key` of the most special file that sets the key or one of its parents."""
    location = _written(location)
    dotted = ".".join(str(part) for part in location)
    for length in range(len(location), 0, -1):
        for source in reversed(sources):
            if location[:length] in source.lines:
                return f"{source.path}:{source.lines[location[:length]]}: {dotted}"
    return f"{sources[-1].path}: {dotted or 'the file'}"


def _explain(error: ValidationError, sources: list[_Source]) -> ForgeError:
    """The first thing that is wrong, in words; how many more there are."""
    problems = error.errors(include_url=False)
    # an unknown key is most often the cause of the others (a missing one, say): name it first
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    location = tuple(first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ForgeError(f"{_place(sources, location)}: unknown key{more}", _nearest(location))
    if first["type"] == "union_tag_invalid":
        kind = first["ctx"]["tag"][:60]
        remedy = _close(kind, schema.SOURCES) or f"known: {', '.join(schema.SOURCES)}"
        return ForgeError(f"{_place(sources, (*location, 'kind'))}: no such kind: {kind!r}{more}", remedy)
    location = _keys(location)
    place = _place(sources, location)
    message = first["msg"].removeprefix("Value error, ")
    given = f", got {str(first['input'])[:60]!r}" if not isinstance(first["input"], dict | list) else ""
    return ForgeError(f"{place}: {message}{given}{more}", f"see {_help(location)}")


def _is_kind(location: tuple, index: int) -> bool:
    """pydantic puts the kind of a source behind its number: (data, sources, 0, documents, path)."""
    return index > 0 and isinstance(location[index - 1], int) and location[index] in schema.SOURCES


def _written(location: tuple) -> tuple:
    """The location as it stands in a file, without the kinds of sources."""
    return tuple(part for index, part in enumerate(location) if not _is_kind(location, index))


def _keys(location: tuple) -> tuple:
    """The location without what is no key of a file: pydantic adds the name of the type that it tried."""
    for length in range(len(location), 0, -1):
        if isinstance(location[length - 1], int) or _field(location[:length]) is not None:
            return location[:length]
    return location


def _help(location: tuple) -> str:
    info = _field(location)
    described = f": {info.description}" if info is not None and info.description else ""
    return f"config/training_config.yaml for {'.'.join(str(part) for part in _written(location))}{described}"


def _nearest(location: tuple) -> str:
    *parents, key = location
    if str(key) in RENAMED:
        return f"today's name is {RENAMED[str(key)]}"
    model = _model(tuple(parents))
    known = sorted(model.model_fields) if model else []
    kinds = [kind for kind, source in schema.SOURCES.items() if key in source.model_fields]
    if kinds and model in schema.SOURCES.values():
        return f"that key belongs to another kind: write kind: {' or '.join(kinds)}"
    close = _close(str(key), known, _written(tuple(parents)))
    if close:
        return close
    elsewhere = [
        f"{name}.{key}"
        for name, info in schema.TrainingConfig.model_fields.items()
        if key in getattr(_unwrap(info.annotation), "model_fields", {})
    ]
    if elsewhere:
        return f"that key belongs to another section: {elsewhere[0]}"
    return f"known here: {', '.join(known)}"


def _close(name: str, known: Iterable[str], parents: tuple = ()) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {'.'.join([*map(str, parents), close[0]])}?" if close else None


def _unwrap(annotation: object) -> object:
    """The model class inside `list[Model]` or `Model | None`."""
    while typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return annotation


def _model(location: tuple) -> type[BaseModel] | None:
    current: object = schema.TrainingConfig
    for index, part in enumerate(location):
        if isinstance(part, int):
            continue
        if _is_kind(location, index):
            current = schema.SOURCES[part]
            continue
        info = getattr(current, "model_fields", {}).get(part)
        if info is None:
            return None
        current = _unwrap(info.annotation)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _field(location: tuple):
    model = _model(location[:-1]) if location and isinstance(location[-1], str) else None
    return model.model_fields.get(location[-1]) if model else None
