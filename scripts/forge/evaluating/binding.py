"""What a verdict is about: digests of weights, tokenizer, chat template, evaluation set and config.

They are told one by one for readers. What holds later phases to them are the records: merge and all after it need a
verdict whose inputs are what is there, byte for byte.
"""

from fnmatch import fnmatch

from forge import files, manifest, models, phase
from forge.evaluating.sets import Sets


def digests(run: phase.Run, wanted: Sets) -> list[dict]:
    """`name` and `sha256` of each, after those of the phases that were read."""
    base = run.inputs["model"]["subject"]
    tokenizer = [item for item in base if any(fnmatch(item["name"], form) for form in models.TOKENIZER_FILES)]
    weights = [item for item in base if item["name"].endswith(".safetensors")]
    named = {
        "weights": files.sha256_json([_files(weights), manifest.digest(run.inputs["train"])]),
        "tokenizer": files.sha256_json(_files(tokenizer)),
        "chat_template": run.facts("model")["chat_template_sha256"],
        "evaluation_set": wanted.digest(),
        "config": run.config.digest(run.phase.name),
    }
    return [*run.input_digests(), *({"name": name, "sha256": value} for name, value in named.items())]


def _files(listed: list[dict]) -> list[list[str]]:
    return sorted([item["name"], item["sha256"]] for item in listed)
