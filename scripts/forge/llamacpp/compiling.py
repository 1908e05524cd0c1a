"""Tools of llama.cpp that llama-cpp-python does not bring, compiled on first use.

They are made out of the source that the library is of and against that library: only the tool's own files, so it takes
no CMake, no second llama.cpp, and the tool uses the GPU when the library does.
"""

import fcntl
import filecmp
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from forge import files
from forge.errors import ENVIRONMENT, ForgeError
from forge.llamacpp import llama

LIBRARIES = ("llama-common", "llama", "ggml", "ggml-base")
INCLUDES = ("common", "include", "ggml/include", "vendor")
COMPILER = "sudo apt install build-essential, then run the same command again"
AT_ONCE = 8  # a file of llama-server takes up to 1 GB of memory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tool:
    """`sources`: globs below llama.cpp's source. `takes`: how long, in words. `includes`: folders beside INCLUDES.
    `prepare(source, folder)`: writes further files into `folder`; the .cpp ones are compiled, too. `optimized`: the
    compiler's level; what computes much is in the libraries, which are there already."""

    name: str
    takes: str
    sources: tuple[str, ...]
    includes: tuple[str, ...] = ()
    prepare: Callable[[Path, Path], None] | None = None
    optimized: str = "-O2"


def ready(tool: Tool, say: Say) -> Path:
    """The tool's path; it is compiled when it is not there yet. Raises ForgeError (7) when that cannot be.

    Beside llama.cpp's source: a new version of it is unpacked into an empty folder, so no old tool is ever found there.
    """
    source, made = llama.source().resolve(), path_of(tool)
    folder = made.parent
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs: the second one finds what the first one made
        if not made.is_file():
            say(f"compiling llama.cpp's {tool.name}, once ({tool.takes})")
            objects = folder / f"{tool.name}.partial"
            files.remove(objects)  # of a killed run
            objects.mkdir()
            try:
                build(tool, source, objects, say).replace(made)
            finally:
                files.remove(objects)
    return made


def path_of(tool: Tool) -> Path:
    """Where the tool lies once it is compiled."""
    return llama.source().resolve() / "build-model-forge" / f"{tool.name}-{llama.library().__version__}"


def libraries() -> Path:
    """Where llama-cpp-python put llama.cpp's libraries, those of its tools included."""
    return Path(llama.library().__file__).parents[1] / "lib"


def build(tool: Tool, source: Path, objects: Path, say: Say) -> Path:
    """Compile and link in the folder `objects`; returns the tool there."""
    header = libraries().parent / "include/llama.h"
    if not header.is_file() or not filecmp.cmp(header, source / "include/llama.h", shallow=False):
        raise ForgeError(
            f"llama-cpp-python was not built from the llama.cpp in {source}, so {tool.name} cannot be compiled",
            "unset LLAMA_CPP and run make setup",
            ENVIRONMENT,
        )
    compiler = find_compiler(tool)
    if tool.prepare:
        tool.prepare(source, objects)
    paths = [path for glob in tool.sources for path in sorted(source.glob(glob))] + sorted(objects.glob("*.cpp"))
    include = [f"-I{source / part}" for part in (*INCLUDES, *tool.includes)] + [f"-I{objects}"]

    def compile_one(numbered: tuple[int, Path]) -> str:
        number, path = numbered
        out = str(objects / f"{number}.o")
        language = ["-x", "c"] if path.name == "sha256.c" else ["-std=c++17"]  # the one file that is no C++
        how = [*language, tool.optimized, "-w", "-DLLAMA_SUBPROCESS", *include]
        run(tool, [compiler, *how, "-c", str(path), "-o", out])
        return out

    with ThreadPoolExecutor(min(os.cpu_count() or 1, AT_ONCE)) as pool:
        try:
            linked = []
            for out in pool.map(compile_one, enumerate(paths)):
                linked.append(out)
                if len(linked) % 10 == 0:
                    say(f"  {len(linked)} of {len(paths)} files")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    made = objects / tool.name
    needed = [f"-L{libraries()}", *(f"-l{name}" for name in LIBRARIES)]
    run(tool, [compiler, "-o", str(made), *linked, *needed, "-pthread"])
    return made


def find_compiler(tool: Tool) -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((found for found in map(shutil.which, names) if found), None)
    if compiler is None:
        raise ForgeError(f"{tool.name} needs a C++ compiler ({' or '.join(names)})", COMPILER, ENVIRONMENT)
    return compiler


def run(tool: Tool, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        said = lines[0][:200] if lines else f"it ended with {done.returncode}"
        raise ForgeError(f"{tool.name} could not be compiled: {said}", COMPILER, ENVIRONMENT)
