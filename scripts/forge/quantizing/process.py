"""Starts the worker that quantizes or compares, and turns its answer into results and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

from forge import llama
from forge.errors import ENVIRONMENT, ForgeError, one_line
from forge.graph import Layout
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


def quantize(weights: dict, model: dict, files: dict[str, Path]) -> dict[str, str]:
    """Write the quantized `files`, by quantization; the SHA-256 of each.

    `weights`: of weights_of; `model`: folder (config and tokenizer), name, outtype and metadata (a file) for
    llama.cpp's converter. Raises Unsupported where only the usual chain can do it.
    """
    threads = os.cpu_count() or 1
    named = {name: str(path) for name, path in files.items()}
    return run({"do": "quantize", "weights": weights, **model, "files": named, "threads": threads})


def compare(weights: dict, base: dict, model: dict, files: list[Path]) -> dict[str, list[dict]]:
    """For each file what tensors.compare says of it."""
    return run({"do": "compare", "weights": weights, "base": base, **model, "files": [str(path) for path in files]})


def run(job: dict):
    job = {key: str(value) if isinstance(value, Path) else value for key, value in job.items()}
    job["llama_cpp"] = str(llama.source().resolve())
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("NO_LOCAL_GGUF", None)
    done = subprocess.run(
        [sys.executable, "-m", "forge.quantizing.worker"],
        input=json.dumps(job),
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ForgeError(
            f"the quantizer ended with {done.returncode}{': ' + one_line(said[-1])[:200] if said else ''}",
            "close other programs if memory was short, and run the same command again",
            ENVIRONMENT,
        ) from None
    if "unsupported" in answer:
        raise Unsupported(answer["unsupported"])
    if "cause" in answer:
        raise ForgeError(answer["cause"], answer["remedy"], answer["code"])
    return answer["done"]
