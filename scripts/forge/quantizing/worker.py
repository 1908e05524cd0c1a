"""The process that quantizes or compares: run with a job as JSON on its standard input, it answers with lines of JSON:
how many tensors are done, at last the result.

A process of its own, because `gguf` and `conversion` must be those of llama.cpp's source archive here and pip's `gguf`
elsewhere, and because memory that it takes is gone when it ends.
"""

import functools
import json
import os
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(sys.stdin.read())
    sys.path[0:0] = [job["llama_cpp"], f"{job['llama_cpp']}/gguf-py"]
    from forge import models

    models.prepare()
    import torch

    from forge.errors import ForgeError, explained
    from forge.provenance import peak_mb
    from forge.quantizing.source import Unsupported
    from forge.weights.merging import Unmergeable

    torch.set_num_threads(1)  # the quantizers have the processors
    try:
        with torch.inference_mode():
            answer = {"done": work(job)}
    except (Unsupported, Unmergeable) as reason:
        answer = {"unsupported": str(reason)}
    except BaseException as error:
        if job.get("debug"):
            raise
        failure: ForgeError = explained(error)
        answer = {"cause": failure.cause, "remedy": failure.remedy, "code": failure.code}
    print(json.dumps({**answer, "peak_mb": peak_mb()}), flush=True)
    os._exit(0)  # threads of torch must not hold up the end


def work(job: dict) -> object:
    """Carry out a job: see forge.quantizing.process, which makes them."""
    from forge.quantizing import direct, source, tensors

    weights = weights_of(job["weights"])
    if job["do"] == "quantize":
        made = converter(job, weights)
        wanted = {name: Path(path) for name, path in job["files"].items()}
        return direct.quantize(made, weights, wanted, job["threads"], told)
    sides = (weights, weights_of(job["base"]))
    merged, base = (functools.partial(source.pieces, converter(job, side), side) for side in sides)
    return tensors.compare(merged, base, job["files"], told)


def told(done: int, of: int) -> None:
    print(json.dumps({"told": [done, of]}), flush=True)


def weights_of(given: dict):
    from forge.weights.merging import Merged, Weights

    if "adapter" in given:
        return Merged(Path(given["folder"]), Path(given["adapter"]), given["dtype"], given["rounding"])
    return Weights(Path(given["folder"]), given["dtype"], given["rounding"])


def converter(job: dict, weights):
    from forge.quantizing import source

    metadata = Path(job["metadata"]) if "metadata" in job else None
    try:
        return source.converter(Path(job["folder"]), weights, job["outtype"], job["name"], metadata)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the converter's own: the usual chain has the last word on what it cannot convert
        raise source.Unsupported(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
