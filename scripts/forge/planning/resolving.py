"""What `auto` stands for on this machine: resolved once before training, printed, and kept in the record."""

import json
from dataclasses import replace
from pathlib import Path

from forge import capacity, files, models
from forge.planning import estimate
from forge.training import choices, ranks


def resolve(settings: dict, base: Path, dataset: Path | None = None, known: Path | None = None) -> choices.Choices:
    """`settings` of the phase train; `base` the base's folder, `dataset` that of the rows.

    `known`: the file that keeps the dtype for a run that goes on, for which of two is faster is measured. Of several
    processes the main one chooses for all.
    """
    return replace(ranks.on_main(resolve_here, settings, base, dataset, known), device=models.device())


def resolve_here(settings: dict, base: Path, dataset: Path | None, known: Path | None) -> choices.Choices:
    if known and known.is_file():
        dtype = json.loads(known.read_text(encoding="utf-8"))
        settings = {**settings, "quantization": {**settings["quantization"], "bnb_4bit_compute_dtype": dtype}}
    found = estimate.Estimator.of(base, dataset, settings["training"]["max_length"])
    free = capacity.room(models.device()) // ranks.world_here()
    chosen = choices.fitting(settings, found, free)
    if known:
        files.write_json(known, chosen.dtype)
    return chosen
