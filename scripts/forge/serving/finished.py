"""The finished model: the deployed GGUF with what its manifest tells of it."""

from dataclasses import dataclass
from pathlib import Path

from forge import graph, manifest
from forge.config import Config
from forge.errors import INTEGRITY, ForgeError
from forge.files import sha256_file


@dataclass(frozen=True)
class Finished:
    """`content`: the manifest that `make modelfile` wrote. It, not the config, tells how the model is to be run."""

    path: Path
    content: dict

    @property
    def project(self) -> dict:
        """name, system_prompt, identity, as the Modelfile has them."""
        return self.content["settings"]["project"]

    @property
    def parameters(self) -> dict:
        """num_ctx, temperature, top_p, repeat_penalty, stop."""
        return self.content["parameters"]

    @property
    def sampling(self) -> dict:
        return {name: self.parameters[name] for name in ("temperature", "top_p", "repeat_penalty")}


def find(configuration: Config) -> Finished:
    """The deployed GGUF, its bytes compared with the manifest's SHA-256.

    Raises ForgeError: 2 when there is none yet, 6 when the file or the Modelfile is not the one that was checked.
    """
    layout = configuration.layout
    record = graph.BY_NAME["modelfile"].record(layout)
    content = manifest.read(record)
    if content is None:
        raise ForgeError("there is no GGUF yet", f"run make all CONFIG={configuration.path}")
    if "deployed" not in content:
        raise ForgeError(f"{record} is another record", f"delete {record} and run make again", INTEGRITY)
    manifest.verify(record, content)
    [made] = [item for item in content["files"] if item["name"] == content["deployed"]]
    path = layout.gguf_folder / made["name"]
    if not path.is_file():
        problem = "is gone"
    elif path.stat().st_size != made["size"] or sha256_file(path) != made["sha256"]:
        problem = "has other bytes than when it was checked"
    else:
        return Finished(path, content)
    raise ForgeError(
        f"{path} {problem}", f"restore it, or run make redo PHASE=gguf CONFIG={configuration.path}", INTEGRITY
    )
