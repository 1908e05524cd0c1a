"""A finished project without training: small real files, and the records and verdicts that the phases leave."""

import argparse
import hashlib
from pathlib import Path

import create_modelfile
import gguf
import numpy as np
from forge import config, files, graph, manifest, phase, sources
from forge.templates import ollama
from safetensors.numpy import save_file

QUANTIZATIONS = ["Q4_K_M", "Q8_0"]
FIDELITY = {"n_rows": 4, "n_tokens": 128, "mean_kl": 0.0123, "p99_kl": 0.2, "top_agreement": 0.95, "other_loss": 1.6}
ASKED = {"right": 3, "asked": 4, "stopped": 4, "answers": 4}
COMPARED = {"n_rows": 4, "n_tokens": 128, "reference_loss": 4.0, "other_loss": 1.5, "mean_kl": 1e-5}
SIGNAL = {
    "name": "preference margin",
    "role": "gate",
    "metric": "safety",
    "verdict": "PASS",
    "value": 0.19,
    "interval": [0.17, 0.21],
    "limit": -0.05,
    "n": 208,
    "unscored": 2,
    "baseline": None,
    "tuned": None,
    "needed": None,
    "unit": "nats a token",
}
SMOLLM2 = ollama.text("smollm2")


def make(path: Path) -> config.Config:
    """Every phase's output for the config at `path`; the last phase is the real one."""
    loaded = config.load(path)
    for row in graph.PHASES[:-1]:
        folder = row.folder(loaded.layout)
        folder.mkdir(parents=True, exist_ok=True)
        if row.gate:
            gate(loaded, row.name)
        else:
            facts = WRITERS[row.name](folder, loaded)
            names = None if row.name != "gguf" else sorted(item.name for item in folder.glob("*.gguf"))
            record(loaded, row, names, facts=facts)
    make_last(loaded)
    return loaded


def make_last(loaded: config.Config) -> None:
    """The Modelfile and the manifest, by the real phase."""
    run = phase.Run(graph.BY_NAME["modelfile"], loaded, argparse.Namespace(force=True))
    run.quiet = True
    run.execute(create_modelfile.work)


def record(loaded: config.Config, row: graph.Phase, names: list[str] | None, **more: object) -> None:
    place = row.record(loaded.layout)
    place.unlink(missing_ok=True)
    content = {
        "subject": manifest.describe(place.parent, names),
        "config": loaded.digest(row.name),
        "settings": loaded.view(row.name),
        "inputs": manifest.input_digests(row, loaded.layout, sources.outside(row.name, loaded)),
        **more,
    }
    manifest.write(place, content)


def gate(loaded: config.Config, name: str, verdict: str = "PASS", override: str | None = None) -> None:
    """The verdict of a gate, and its record where it passed or was overridden."""
    folder = loaded.layout.gate(name)
    over = {"override": override} if override else {}
    files.write_json(folder / "verdict.json", {"verdict": verdict, "phase": name, **VERDICTS[name], **over})
    if name == "verify-gguf":
        files.write_text(folder / "template", SMOLLM2)
    (folder / "gate.ok").unlink(missing_ok=True)
    if verdict == "PASS" or override:
        names = sorted(item.name for item in folder.iterdir())
        record(loaded, graph.BY_NAME[name], names, verdict=verdict, **over)


def weights(path: Path, seed: int, **metadata: str) -> None:
    tensors = {"a": np.random.default_rng(seed).standard_normal((64, 256), dtype=np.float32)}
    save_file(tensors, path, {"format": "pt", **metadata})


def quantized(path: Path, seed: int, **more: str) -> None:
    """A small GGUF with weights of several parts of an upload."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    for key, value in more.items():
        writer.add_string(key.replace("_", "."), value)
    writer.add_tensor("a", np.random.default_rng(seed).standard_normal((256, 256), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}\n', encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}\n', encoding="utf-8")


def _model(folder: Path, loaded: config.Config) -> dict:
    tokenizer(folder)
    (folder / "LICENSE").write_text("Apache License\n  Version 2.0, January 2004\n", encoding="utf-8")
    weights(folder / "model.safetensors", 1)
    named = {"base_model_name": loaded.values.model.base_model_name, "revision": "0" * 40}
    return {**named, "dtype": "bfloat16", "chat_template_sha256": "c" * 64, "end_token": "<|im_end|>"}


def _dataset(folder: Path, loaded: config.Config) -> dict:
    (folder / "train.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    return {"rows": {"train": 259, "validation": 7}, "sources": [{"kind": "records", "path": "hub:org/rows"}]}


def _train(folder: Path, loaded: config.Config) -> dict:
    weights(folder / "adapter_model.safetensors", 2)
    named = {"peft_type": "LORA", "base_model_name_or_path": loaded.values.model.base_model_name}
    files.write_json(folder / "adapter_config.json", named)
    (folder / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return {"stages": [{"name": "sft", "steps": 8, "rows": {"train": 259}, "canary": None}], "rows": {"train": 259}}


def _merge(folder: Path, loaded: config.Config) -> dict:
    tokenizer(folder)
    weights(folder / "model.safetensors", 3)
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    return {}


def _gguf(folder: Path, loaded: config.Config) -> dict:
    made = {}
    for seed, name in enumerate(loaded.values.gguf.quantizations):
        path = loaded.layout.gguf(name)
        quantized(path, seed)
        made[name] = {"name": path.name, "size": path.stat().st_size, "sha256": files.sha256_file(path)}
    return {"files": made, "deployed": next(iter(made.values()))["name"]}


WRITERS = {"model": _model, "dataset": _dataset, "train": _train, "merge": _merge, "gguf": _gguf}
VERDICTS = {
    "validate": {"checks": []},
    "verify-adapter": {
        "checks": [],
        "comparison": COMPARED,
        "answers": {"base": {**ASKED, "right": 0}, "tuned": ASKED},
    },
    "evaluate": {"checks": [], "signals": [SIGNAL], "targets": ["ai_psychosis"]},
    "verify-merged": {"checks": [], "comparison": COMPARED},
    "verify-gguf": {
        "checks": [],
        "fidelity": dict.fromkeys(QUANTIZATIONS, FIDELITY),
        "answers": dict.fromkeys(QUANTIZATIONS, ASKED),
        "template": {"name": "smollm2", "conversations": 17, "sha256": hashlib.sha256(SMOLLM2.encode()).hexdigest()},
    },
}
