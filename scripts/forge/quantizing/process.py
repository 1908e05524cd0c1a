"""Starts the worker that quantizes or compares, and turns its answer into results and errors."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from forge.errors import ENVIRONMENT, ForgeError, one_line
from forge.graph import Layout
from forge.llamacpp import llama
from forge.progress import Told, untold
from forge.quantizing.source import Unsupported

SCRIPTS = Path(__file__).resolve().parents[2]


def weights_of(layout: Layout, facts: dict) -> dict:
    """Where the merged weights come from, for the worker. `facts`: the merge's."""
    if facts["kept"]:
        return {"folder": str(layout.merged), "dtype": facts["dtype"], "rounding": None}
    return {**base_of(layout, facts), "adapter": str(layout.adapter)}


def base_of(layout: Layout, facts: dict) -> dict:
    """The weights that the adapter was merged into."""
    return {"folder": str(layout.base), "dtype": facts["dtype"], "rounding": facts["rounding"]}


def quantize(weights: dict, model: dict, files: dict[str, Path], told: Told = untold) -> dict[str, str]:
    """Write the quantized `files`, by quantization; the SHA-256 of each.

    `weights`: of weights_of; `model`: folder (config and tokenizer), name, outtype and metadata (a file) for
    llama.cpp's converter. Raises Unsupported where only the usual chain can do it.
    """
    threads = os.cpu_count() or 1
    named = {name: str(path) for name, path in files.items()}
    return run({"do": "quantize", "weights": weights, **model, "files": named, "threads": threads}, told)


def compare(weights: dict, base: dict, model: dict, files: list[Path], told: Told = untold) -> dict[str, list[dict]]:
    """For each file what tensors.compare says of it."""
    paths = [str(path) for path in files]
    return run({"do": "compare", "weights": weights, "base": base, **model, "files": paths}, told)


def run(job: dict, told: Told = untold):
    job = {key: str(value) if isinstance(value, Path) else value for key, value in job.items()}
    job["llama_cpp"] = str(llama.source().resolve())
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("NO_LOCAL_GGUF", None)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        code, answer = answered(job, environment, errors, told)
        errors.seek(0)
        said = [line for line in errors if line.strip()]
    if answer is None:
        raise ForgeError(
            f"the quantizer ended with {code}{': ' + one_line(said[-1])[:200] if said else ''}",
            "close other programs if memory was short, and run the same command again",
            ENVIRONMENT,
        )
    if "unsupported" in answer:
        raise Unsupported(answer["unsupported"])
    if "cause" in answer:
        raise ForgeError(answer["cause"], answer["remedy"], answer["code"])
    return answer["done"]


def answered(job: dict, environment: dict, errors: IO[str], told: Told) -> tuple[int, dict | None]:
    """The worker's exit code, and its answer if it gave one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "forge.quantizing.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        text=True,
        encoding="utf-8",
    )
    answer = None
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended before it was asked: its exit code tells
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # some library's own words
                found = json.loads(line)
                if isinstance(found, dict) and "told" in found:
                    told(*found["told"])
                elif isinstance(found, dict):
                    answer = found
        return process.wait(), answer
    except BaseException:
        process.kill()
        process.wait()
        raise
