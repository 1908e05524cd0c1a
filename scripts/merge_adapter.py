"""Merge the adapter into the base's 16-bit weights: models/merged/<name>-merged/.

Reads merge.* of the config, the base and the adapter (both checked against their recorded hashes; an adapter
that was trained on another base is refused), with merge.base: measure the held-out rows, too. One weight is in
memory at a time; the arithmetic is peft's. An adapter that cannot be merged so is merged by peft as a whole, if
memory allows. The base's config, tokenizer and template files are carried byte for byte. Writes safetensors shards
and manifest.json; with merge.keep: false no weights, only what the merge is.
"""

import json
import os
import shutil
from pathlib import Path

from forge import compare, files, manifest, models, phase
from forge.environment import resources
from forge.errors import BAD_INPUT, ENVIRONMENT, INTEGRITY, ForgeError
from forge.weights import merging, sharding, streaming

CARRIED = ("config.json", "generation_config.json", *models.LICENCE_FILES, *models.TOKENIZER_FILES)
RECIPE = "base_and_adapter.json"
BASES = ("base", "dequantized")
HELD_OUT = 32  # rows that merge.base: measure compares the two on


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # 8 GB cards cannot hold 16-bit weights of 7B
    models.prepare()
    dtype = run.facts("model")["dtype"]
    chosen, losses = choose(run, dtype)
    keep = run.settings["merge"]["keep"]
    try:
        weights = merging.Merged(run.layout.base, run.layout.adapter, dtype, rounding(run, chosen))
        way = "weight by weight"
    except merging.Unmergeable as reason:
        require_the_usual_way(chosen, keep, reason)
        weights, way = None, f"as a whole, by peft: {reason}"
    run.say(f"merging {way}")
    if keep:
        size = sum(item["size"] for item in run.inputs["model"]["subject"] if item["name"].endswith(".safetensors"))
        files.require_free_space(run.staging, size, "the merged model")
        run.hashes = write(run, weights, dtype, size)
    else:
        digests = {name: manifest.digest(run.inputs[name]) for name in ("model", "train")}
        files.write_json(run.staging / RECIPE, {"base": chosen, **digests})
    carry(run.layout.base, run.staging, dtype, whole=weights is None)
    return {
        "dtype": dtype,
        "base": chosen,
        "rounding": rounding(run, chosen),
        "losses": losses,
        "kept": keep,
        "way": way,
        "base_model_name": run.facts("model")["base_model_name"],
    }


# -- which base ---------------------------------------------------------------------------------------------------


def rounding(run: phase.Run, base: str) -> dict | None:
    """Settings of the 4 bits that the dequantized base was rounded to; None for the base as it is."""
    return run.inputs["train"]["settings"]["quantization"] if base == "dequantized" else None


def choose(run: phase.Run, dtype: str) -> tuple[str, dict | None]:
    """`base` or `dequantized`, and where they were measured the loss of each on held-out rows with its sample size."""
    wanted = run.settings["merge"]["base"]
    four_bit = run.inputs["train"]["settings"]["quantization"]["load_in_4bit"]
    if wanted == "dequantized" and not four_bit:
        raise ForgeError(
            "merge.base is dequantized, but the adapter was trained beside 16-bit weights",
            "set merge.base to base",
            BAD_INPUT,
        )
    if wanted != "measure" or not four_bit:
        return ("base" if wanted == "measure" else wanted), None
    rows = compare.heldout_rows(run.layout.dataset, models.tokenizer(run.layout.base), HELD_OUT)
    losses: dict = {}
    for name in BASES:
        try:
            weights = merging.Merged(run.layout.base, run.layout.adapter, dtype, rounding(run, name))
        except merging.Unmergeable as reason:
            run.say(f"merge.base: not measured, base is taken: {reason}")
            return "base", None
        losses[name], losses["tokens"] = compare.loss(rows, streaming.scorer(weights))
    chosen = min(BASES, key=losses.get)
    run.say(
        f"loss on {losses['tokens']} held-out tokens: merged into the base {losses['base']:.4f}, into the dequantized "
        f"one {losses['dequantized']:.4f}: {chosen} is kept"
    )
    return chosen, losses


def require_the_usual_way(chosen: str, keep: bool, reason: merging.Unmergeable) -> None:
    """What needs the weights one at a time cannot be had from peft's own merge."""
    for wanted, key in ((chosen != "base", "merge.base to base"), (not keep, "merge.keep to true")):
        if wanted:
            raise ForgeError(f"this adapter cannot be merged weight by weight: {reason}", f"set {key}", BAD_INPUT)


# -- writing ------------------------------------------------------------------------------------------------------


def write(run: phase.Run, weights: merging.Merged | None, dtype: str, size: int) -> dict[str, str]:
    """The weight files; their SHA-256 where it is known."""
    most = run.settings["merge"]["max_shard_size"]
    if weights is not None:
        return sharding.write(weights, run.staging, most, run.progress("weights"))
    require_memory(size)
    model = models.with_adapter(models.causal_lm(run.layout.base, dtype), run.layout.adapter).merge_and_unload()
    refuse_infinite(model)
    model.config.name_or_path = ""  # no path of this machine in the files
    model.save_pretrained(str(run.staging), max_shard_size=most)
    return {}


def refuse_infinite(model) -> None:
    import torch

    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ForgeError(f"{name} is not finite after the merge", "train again, with a lower rate", INTEGRITY)


def require_memory(size: int) -> None:
    """Refuse before the kernel kills: the whole model is in memory here, a fifth more for copies."""
    import psutil

    needed = int(size * 1.2)
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    if memory.available + swap.free < needed:
        raise ForgeError(
            f"merging needs {needed / 1e9:.1f} GB of memory, {(memory.available + swap.free) / 1e9:.1f} GB are free",
            f"add swap: {resources.SWAP}; under WSL2 raise memory= and swap= in .wslconfig",
            ENVIRONMENT,
        )


def carry(base: Path, target: Path, dtype: str, whole: bool) -> None:
    """The base's own files: a tokenizer saved anew by another version may no longer be recognised.

    `whole`: peft wrote a config of its own. Where the weights change their type, the config says so.
    """
    for pattern in CARRIED:
        for path in base.glob(pattern):
            if not (whole and path.name == "config.json"):
                shutil.copyfile(path, target / path.name)
    settings = json.loads((target / "config.json").read_text(encoding="utf-8"))
    named = settings.get("dtype", settings.get("torch_dtype"))
    if named not in (None, dtype):
        settings.pop("torch_dtype", None)
        files.write_json(target / "config.json", {**settings, "dtype": dtype})


if __name__ == "__main__":
    phase.start(__doc__, "merge", work)
