"""Merge the adapter into the base's 16-bit weights: models/merged/<name>-merged/.

Reads merge.* of the config, the base and the adapter (both checked against their recorded hashes; an adapter
that was trained on another base is refused). The arithmetic is peft's merge_and_unload, on the CPU. The
base's tokenizer and template files are carried byte for byte. Writes safetensors shards and manifest.json.
"""

import os
import shutil
from pathlib import Path

from forge import files, models, phase
from forge.errors import ENVIRONMENT, ForgeError


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # 8 GB cards cannot hold 16-bit weights of 7B
    models.prepare()
    size = sum(item["size"] for item in run.inputs["model"]["subject"] if item["name"].endswith(".safetensors"))
    files.require_free_space(run.staging, size, "the merged model")
    require_memory(size)
    dtype = run.facts("model")["dtype"]
    model = models.with_adapter(models.causal_lm(run.layout.base, dtype), run.layout.adapter)
    merged = model.merge_and_unload(safe_merge=True)  # safe: refuses NaN
    merged.config.name_or_path = ""  # no path of this machine in the files
    merged.save_pretrained(str(run.staging), max_shard_size=run.settings["merge"]["max_shard_size"])
    carry_tokenizer(run.layout.base, run.staging)
    run.say(f"merged into {dtype} weights, {size / 1e9:.2f} GB")
    return {"dtype": dtype, "base": "base", "base_model_name": run.facts("model")["base_model_name"]}


def require_memory(size: int) -> None:
    """Refuse before the kernel kills: the whole model is in memory here, a fifth more for copies."""
    import psutil

    needed = int(size * 1.2)
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    if memory.available + swap.free < needed:
        raise ForgeError(
            f"merging needs {needed / 1e9:.1f} GB of memory, {(memory.available + swap.free) / 1e9:.1f} GB are free",
            "add swap: sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
            "sudo swapon /swapfile; under WSL2 raise memory= and swap= in .wslconfig",
            ENVIRONMENT,
        )


def carry_tokenizer(base: Path, target: Path) -> None:
    """The base's own files: a tokenizer saved anew by another version may no longer be recognised."""
    for pattern in models.TOKENIZER_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    phase.start(__doc__, "merge", work)
