"""Look into every file before it is sent: its bytes are the recorded ones, and no secret is in them."""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from forge import files
from forge.errors import DATA_REFUSED, INTEGRITY, ForgeError
from forge.llamacpp import llama

WEIGHTS = (".gguf", ".safetensors")
LONGEST_HEADER = 1 << 27  # bytes of a safetensors header; the format's own limit is 100 MB


@dataclass(frozen=True)
class Item:
    """One file to send: its `name` in the repository, where it lies, and what its bytes must be."""

    name: str
    path: Path
    sha256: str
    size: int


def check(item: Item, token: str | None) -> None:
    """Raises ForgeError: 6 where the bytes are not those on record, 4 for a secret or a path of this machine.

    `token`: the user's own, looked for in every byte. Texts and the metadata of weights are searched for credentials
    of all kinds.
    """
    if _digest(item, token) != item.sha256:
        raise ForgeError(
            f"{item.path} is not what its record says: another SHA-256",
            "make it anew: delete its record and run make again",
            INTEGRITY,
        )
    _refuse(item, text_of(item.path))


def _digest(item: Item, token: str | None) -> str:
    """SHA-256 of the file; on the way its bytes are searched for the token."""
    wanted, digest, before = token.encode() if token else None, hashlib.sha256(), b""
    with item.path.open("rb", buffering=0) as handle:
        while block := handle.read(files.BLOCK):
            digest.update(block)
            if wanted and wanted in before + block:
                raise _secret(item, "your own Hugging Face token")
            before = block[-len(wanted) :] if wanted else b""
    return digest.hexdigest()


def text_of(path: Path) -> str:
    """All text of a file; of weights their metadata, a key a line."""
    if path.suffix == ".gguf":
        return _lines(llama.header(path))
    if path.suffix == ".safetensors":
        return _lines(safetensors_metadata(path))
    return path.read_text(encoding="utf-8", errors="replace")


def _lines(metadata: dict) -> str:
    return "\n".join(f"{key}: {value}" for key, value in metadata.items() if value is not None)


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The free text in a safetensors header. Raises ForgeError (6) for a file that has none."""
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > LONGEST_HEADER:
                raise ValueError("its header is too long")
            return json.loads(handle.read(length)).get("__metadata__", {})
    except (struct.error, ValueError, AttributeError) as error:
        raise ForgeError(f"{path} is no safetensors file: {error}", "make it anew", INTEGRITY) from None


def _refuse(item: Item, text: str) -> None:
    from forge.screening import secrets

    found = secrets.find(text)
    if found:
        line = text.count("\n", 0, found[0].start) + 1
        raise _secret(item, f"what looks like a credential ({found[0].rule}, line {line})")
    here = str(Path.cwd())
    if here in text:
        raise ForgeError(
            f"{item.name} holds the path of this checkout", "take it out of the config and make it anew", DATA_REFUSED
        )


def _secret(item: Item, what: str) -> ForgeError:
    return ForgeError(
        f"{item.name} holds {what}: nothing was sent",
        f"find where {item.path} has it from, take it out, make the file anew, and make that credential invalid",
        DATA_REFUSED,
    )
