"""Fine-tune a LoRA adapter on the dataset, by QLoRA on a GPU or on the CPU: models/<name>-adapter/.

Reads quantization, lora, training and project.seed of the config, the base model and the validated dataset. Training
itself is trl over peft and bitsandbytes: supervised first (training.stages: sft), the loss on the assistant's tokens
and the end token; then, where the config says so, dpo on preference pairs or kto on labelled rows, on the same
adapter. Rows are packed without padding and none sees another. Where memory runs out the micro-batch is halved. A
killed run goes on from its last complete checkpoint; Ctrl-C saves one and ends with code 75. Runs under accelerate
launch, too, or starts it where training.launch names its config file (docs/several-gpus.md). Writes
adapter_model.safetensors, adapter_config.json, metrics.jsonl and manifest.json; the adapter that it replaces goes to
models/archive/.
"""

import json
import shutil
from pathlib import Path

from forge import disk, files, models, phase
from forge.training import launch, ranks


def work(run: phase.Run) -> dict:
    ranks.on_main(disk.require, run)
    models.prepare(repeats=True)
    from forge.planning import resolving
    from forge.training import checkpoints, stages

    tokenizer = models.tokenizer(run.layout.base)
    known = checkpoints.folder(run) / "dtype.json"
    chosen = resolving.resolve(run.settings, run.layout.base, run.layout.dataset, known)
    describe(run, chosen)
    adapter, facts = stages.run_all(run, tokenizer, chosen)
    if not ranks.is_main():
        return {}
    save(run, adapter, [item["name"] for item in facts])
    run.discard_later(run.layout.checkpoints)
    supervised = facts[0]
    return {
        "stages": facts,
        "steps": sum(item["steps"] for item in facts),
        "validation_loss": supervised["validation_loss"],
        "rows": supervised["rows"],
        "choices": chosen.as_dict(),
    }


def describe(run: phase.Run, chosen) -> None:
    """What was resolved, before the work starts."""
    kind = "4-bit " + run.settings["quantization"]["bnb_4bit_quant_type"] if chosen.four_bit else chosen.dtype
    unpacked = ", held unpacked" if chosen.unpack else ""
    saving = "on" if chosen.gradient_checkpointing else "off"
    run.say(
        f"base in {kind}{unpacked}; compute {chosen.dtype} on {chosen.device}, seed {run.settings['project']['seed']}"
    )
    if chosen.processes > 1:
        held = "each holding a part of the weights" if chosen.sharded else "each holding the whole model"
        run.say(f"{chosen.processes} processes, {held}")
    run.say(
        f"attention {chosen.attention or 'default'}, optimizer {chosen.optimizer}, gradient checkpointing {saving}, "
        f"stages {', '.join(run.settings['training']['stages'])}"
    )
    run.say(f"about {chosen.predicted_mb / 1e3:.1f} GB of memory at the peak, {chosen.free_mb / 1e3:.1f} GB are free")


def save(run: phase.Run, adapter: Path, stages: list[str]) -> None:
    """The adapter, and the curves without times: the same training gives the same bytes."""
    shutil.copyfile(adapter / "adapter_model.safetensors", run.staging / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = run.facts("model")["base_model_name"]
    settings["revision"] = run.facts("model")["revision"]
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()  # a set to peft: its order changes from run to run
    files.write_json(run.staging / "adapter_config.json", settings)
    curves = [
        row for name in stages for row in files.read_jsonl(adapter.parent.parent / name / "finished/metrics.jsonl")
    ]
    files.write_jsonl(run.staging / "metrics.jsonl", curves)


if __name__ == "__main__":
    phase.start(__doc__, "train", work, execute=launch.execute)
