"""What comes from outside the pipeline: documents and scenarios that a config names, and two small templates.

make cannot hold a corpus as prerequisites (100,000 files make a no-op take half a minute, and a space in a
name stops it), so one scan stands for all: every file's SHA-256, kept in a cache keyed by size and
modification time, so that an unchanged file costs one `stat`.
"""

import fnmatch
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from forge.config import Config
from forge.errors import ForgeError
from forge.files import sha256_file, sha256_json, write_text
from forge.graph import Layout

# What is taken of a folder whose source names no globs. Source code has to be named: whoever gives a folder of notes
# does not mean the scripts beside them.
BY_KIND = {
    "documents": ("md", "markdown", "txt", "text", "rst", "html", "htm", "xhtml", "pdf", "docx", "ipynb"),
    "records": ("jsonl", "ndjson", "json", "csv", "tsv", "parquet"),
}
MODELFILE_TEMPLATE = "Modelfile.template"
BASELINES = Path("baselines")
HUB = "hub:"  # before the name of a data set of the Hub
EVALUATION_SETS = Path("scenarios/evaluation")  # training data is kept free of them
SAFETY_ROWS = Path("scenarios/training/safety.jsonl")  # mixed into every training set (data.safety_share)


def files_of(source: dict) -> list[Path]:
    """Files of one source, sorted by name. Raises ForgeError (2) when its path is not there."""
    return [Path(name) for name in names_of(source)]


def names_of(source: dict) -> list[str]:
    """As `files_of`, but plain strings: with Path objects 100,000 files took 2.2 s at every make instead of 1.2.

    Links that lead to folders are not followed (they may loop); hidden files and folders are left out.
    """
    if source["path"].startswith(HUB):
        return []  # its revision stands in the config: nothing on this machine changes it
    root = Path(source["path"]).expanduser()
    if source["kind"].startswith("scenario"):
        return _scenario_files(source, root)
    if root.is_file():
        return [_encodable(str(root))]
    if not root.is_dir():
        raise ForgeError(
            f"data.sources: {root} does not exist",
            f"put your {source['kind']} there, or change data.sources in the config",
        )
    wanted, unwanted = _pattern(included(source)), _pattern(source["exclude"])
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        for name in files:
            inside = prefix + name
            if not name.startswith(".") and wanted(inside) and not unwanted(inside):
                found.append(_encodable(f"{folder}/{name}"))
    return sorted(found)


def not_read(source: dict, names: list[str]) -> dict[str, str]:
    """What of a folder's content is not read, with the reason: links that lead out of it (the config does not show that
    they would be read), files and folders alike, and folders that this user may not read."""
    root = Path(source["path"]).expanduser()
    found: dict[str, str] = {}
    if not root.is_dir():
        return found

    def refused(error: OSError) -> None:
        found[error.filename] = f"{error.filename}: {error.strerror}"

    folders = [f"{folder}/{name}" for folder, inside, _ in os.walk(root, onerror=refused) for name in inside]
    for name in sorted([*names, *folders]):
        if os.path.islink(name) and not _target(name).is_relative_to(root.resolve()):  # noqa: PTH114 - as above
            found[name] = f"{name} is a link that leads out of its folder"
    return found


def _target(name: str) -> Path:
    try:
        return Path(name).resolve()
    except (OSError, RuntimeError):  # links that lead in a circle: the reader names them
        return Path(name).absolute()


def included(source: dict) -> list[str]:
    """Globs of what a source takes from its folder or data set."""
    return source["include"] or [f"**/*.{suffix}" for suffix in BY_KIND[source["kind"]]]


def _scenario_files(source: dict, root: Path) -> list[str]:
    """The file, and what SQLite keeps beside a database: changes may stand in its log alone."""
    if not root.is_file():
        remedy = {
            "scenario_forge": "make scenarios with scenario-forge first, correct path, or take that source out",
            "scenario_json": "put the file there (scenario-forge export --format json), or correct path",
        }[source["kind"]]
        raise ForgeError(f"data.sources: there is no file {source['path']} ({source['kind']})", remedy)
    log = root.with_name(root.name + "-wal")
    return [_encodable(str(path)) for path in (root, log) if path == root or path.is_file()]


def _encodable(name: str) -> str:
    """The name, unless it is no UTF-8: such a name can stand in no record."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ForgeError(f"data.sources: the name of {shown} is not UTF-8", "rename it, or exclude it") from None
    return name


def _pattern(globs: list[str]) -> Callable[[str], object]:
    """`**/` also stands for no folder at all, as in shells; `*` reaches over slashes, as in git's own lists."""
    both = [form for glob in globs for form in (glob, glob.removeprefix("**/"), glob.replace("/**/", "/"))]
    return re.compile("|".join(map(fnmatch.translate, both)) or r"(?!)").match


def scan(sources: list[dict], cache_path: Path | None = None, also: list[Path] | None = None) -> str:
    """One digest of all sources' files, names and contents, and of the files `also` named.

    A make with 100,000 unchanged files takes 1.2 s.
    """
    old = _read_cache(cache_path)
    new: dict[str, list] = {}
    for name in [name for source in sources for name in names_of(source)] + [str(path) for path in also or []]:
        try:
            status = os.stat(name)  # noqa: PTH116 - no Path apiece, as above
            key = [status.st_size, status.st_mtime_ns]
            known = old.get(name)
            if not stat.S_ISREG(status.st_mode):
                new[name] = [*key, "not a regular file"]
            elif known and known[:2] == key:
                new[name] = known
            else:
                new[name] = [*key, sha256_file(Path(name))]
        except OSError as error:
            new[name] = [0, 0, f"unreadable: {error.strerror}"]
    if cache_path is not None and new != old:
        write_text(cache_path, json.dumps(new, separators=(",", ":"), ensure_ascii=True))
    return sha256_json([[name, entry[2]] for name, entry in sorted(new.items())])


def digests(sources: list[dict], cache_path: Path) -> list[dict]:
    """What stands in the record for every source: its kind, path, number of files, and one digest of them."""
    known = _read_cache(cache_path)
    found = []
    for source in sources:
        names = names_of(source)
        content = [[name, known[name][2] if name in known else None] for name in names]
        told = {"kind": source["kind"], "path": source["path"], "files": len(names)}
        found.append({**told, **({"revision": source["revision"]} if source.get("revision") else {})})
        found[-1]["sha256"] = sha256_json(content)
    return found


def _read_cache(path: Path | None) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return {name: entry for name, entry in found.items() if isinstance(entry, list)}
    except (OSError, ValueError, AttributeError):
        return {}


def measured_with(configuration: Config) -> list[Path]:
    """Every file that the evaluation's verdict depends on: the sets, the user's own, what a detector learned from, and
    the last release of this project."""
    training = sorted(SAFETY_ROWS.parent.glob("*.jsonl"))
    release = baseline(configuration.layout.name)
    own = [Path(path).expanduser() for path in configuration.values.evaluation.sets]
    return [*sorted(EVALUATION_SETS.glob("*.jsonl")), *training, *own, *([release] if release.is_file() else [])]


def baseline(name: str) -> Path:
    """What the last release of a project was measured at: see scripts/regression.py."""
    return BASELINES / f"{name}.json"


def cache_of(layout: Layout) -> Path:
    return layout.build / "sources.cache"


def outside(phase: str, configuration: Config) -> str | None:
    """Digest of what a phase reads besides the config and other phases' output; None where that is nothing."""
    if phase == "dataset":
        data = configuration.view("dataset")["data"]
        allowlist = data["screening"]["allowlist"]
        also = [*sorted(EVALUATION_SETS.glob("*.jsonl")), *([Path(allowlist)] if allowlist else [])]
        also += [SAFETY_ROWS] if data["safety_share"] else []
        return scan(data["sources"], cache_of(configuration.layout), also)
    if phase == "evaluate":
        return scan([], configuration.layout.build / "evaluation.cache", measured_with(configuration))
    template = configuration.values.model.chat_template if phase == "model" else None
    if phase == "modelfile":
        template = MODELFILE_TEMPLATE
    return sha256_file(Path(template)) if template and Path(template).is_file() else None
