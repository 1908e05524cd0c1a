"""A file to a document: what may be opened, which reader takes it, and every failure named by the file."""

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from forge.errors import ENVIRONMENT, ForgeError
from forge.reading import documents, readers
from forge.reading.documents import Builder, Document

# What a library quotes in a message may be the document's text, a password in it included.
QUOTED = re.compile(r"""(?<!\w)b?(['"]).*?(?:\1|$)""", re.DOTALL)
BY_SUFFIX: dict[str, tuple[str, Callable[[str, bytes], Builder]]] = {
    **dict.fromkeys((".md", ".markdown"), ("Markdown", documents.page)),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("HTML", readers.html)),
    ".rst": ("reStructuredText", readers.restructured_text),
    ".docx": ("Word file", readers.word),
    ".pdf": ("PDF", readers.pdf),
    ".ipynb": ("notebook", readers.notebook),
    **dict.fromkeys(readers.LANGUAGES, ("source code", readers.source_code)),
}


def read(path: Path) -> Document:
    """One file. Raises ForgeError (2) naming file and line when it is no clean text or a broken document."""
    return parse(str(path), load(path))


def load(path: Path) -> bytes:
    """Bytes of a regular file of at most documents.LARGEST bytes; never waits for a FIFO, never opens a device.

    Raises ForgeError (2) for anything else. The kind is looked at before opening (opening a tape winds it) and
    again afterwards (the name may lead elsewhere by then).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _no_file(path)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _bytes(path, handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise _no_file(path) from None
        raise ForgeError(f"{path}: {error.strerror}", "make it readable, or exclude it") from None


def _bytes(path: Path, handle: int) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise _no_file(path)
    if status.st_size > documents.LARGEST:
        raise documents.too_large(str(path), documents.LARGEST)
    parts, size = [], 0
    while part := os.read(handle, 1 << 20):  # a file may grow, and those of /proc tell size 0
        parts.append(part)
        size += len(part)
        if size > documents.LARGEST:
            raise documents.too_large(str(path), documents.LARGEST)
    return b"".join(parts)


def _no_file(path: Path) -> ForgeError:
    return ForgeError(f"{path} is no regular file", "exclude it (data.sources: exclude)")


def parse(name: str, raw: bytes) -> Document:
    """A document of its bytes; `name` stands in messages and in Unit.file, and its suffix says which format it is.

    Raises ForgeError (2) naming the file, and the line where there is one, when it is no clean text or a broken
    document, and (7) when the library that reads the format is not installed.
    """
    suffix = Path(name).suffix.lower()
    kind, reader = BY_SUFFIX.get(suffix, ("text", documents.plain))
    try:
        return reader(name, raw).document()
    except ForgeError:
        raise
    except ModuleNotFoundError as error:
        package = readers.PACKAGES.get(error.name, error.name)
        raise ForgeError(f"{name}: {kind} needs the package {package}", "run make setup", ENVIRONMENT) from error
    except RecursionError as error:
        raise ForgeError(f"{name}: {kind} that is nested too deeply", "simplify it, or exclude it") from error
    except MemoryError as error:
        raise ForgeError(f"{name}: {kind} that needs more memory than there is", "split it, or exclude it") from error
    except Exception as error:  # whatever a library raises on a broken file
        told = f"{type(error).__name__}: {QUOTED.sub('...', str(error))}"[:200]
        raise ForgeError(f"{name}: broken {kind}: {told}", "repair or convert it, or exclude it") from error
