"""Fine-tune a LoRA adapter on the dataset, by QLoRA on a GPU or on the CPU: models/<name>-adapter/.

Reads quantization, lora, training and project.seed of the config, the base model and the validated dataset.
Training itself is trl's SFTTrainer over peft and bitsandbytes. The loss is on the assistant's tokens and the
end token. A killed run goes on from its last complete checkpoint; Ctrl-C saves one and ends with code 75.
Writes adapter_model.safetensors, adapter_config.json, metrics.jsonl and manifest.json; the adapter that it
replaces goes to models/archive/.
"""

import json
import math
import time
from pathlib import Path

from forge import chat, checkpoints, files, models, phase
from forge.errors import BAD_INPUT, INTERRUPTED, ForgeError


def work(run: phase.Run) -> dict:
    models.prepare()
    tokenizer = models.tokenizer(run.layout.base)
    rows = {name: encode(run, tokenizer, name) for name in ("train", "validation")}
    dtype = models.compute_dtype(run.settings["quantization"]["bnb_4bit_compute_dtype"])
    model = load_base(run, dtype)
    folder = checkpoints.folder(run)
    trainer = build_trainer(run, model, tokenizer, rows, dtype, folder)
    describe(run, trainer, rows, dtype)
    stop = follow(run, trainer)
    resume = checkpoints.latest(folder, run.say)
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if stop.asked:
        raise ForgeError("interrupted; a checkpoint is saved", "run the same command again: it goes on", INTERRUPTED)
    save(run, trainer)
    run.discard_later(run.layout.checkpoints)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    run.say(f"training loss {result.training_loss:.4f}, validation loss {losses[-1]:.4f}")
    return {
        "stages": ["sft"],
        "steps": trainer.state.global_step,
        "validation_loss": losses[-1],
        "rows": {name: len(items) for name, items in rows.items()},
        "compute_dtype": dtype,
        "device": models.device(),
    }


def encode(run: phase.Run, tokenizer, split: str) -> list[dict]:
    """Rows of a split as input_ids and labels. Raises ForgeError (2) for a row that does not fit."""
    limit = run.settings["training"]["max_length"]
    encoded = []
    for row in files.read_jsonl(run.layout.dataset / f"{split}.jsonl"):
        item = chat.encode(tokenizer, chat.messages_of(row))
        if len(item["input_ids"]) > limit:
            raise ForgeError(
                f"{split} row {row['id']} has {len(item['input_ids'])} tokens, training.max_length is {limit}",
                "raise training.max_length or lower data.max_tokens",
                BAD_INPUT,
            )
        encoded.append(item)
    return encoded


def load_base(run: phase.Run, dtype: str):
    """The base in 4 bits (QLoRA, Dettmers et al. 2023) or in the compute dtype."""
    import torch
    from transformers import BitsAndBytesConfig

    settings = run.settings["quantization"]
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["bnb_4bit_quant_type"],
        bnb_4bit_use_double_quant=settings["bnb_4bit_use_double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = models.causal_lm(run.layout.base, dtype, four_bit if settings["load_in_4bit"] else None)
    model.config.use_cache = False
    # On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights for inference, with scales rounded to bf16, and
    # back for training: every evaluation would change the base, and a resumed run would train on another one.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def build_trainer(run: phase.Run, model, tokenizer, rows: dict, dtype: str, folder: Path):
    import torch
    from datasets import Dataset
    from forge import batches
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):
        """transformers' own length grouping draws from the global generator, so a resumed run sees other batches."""

        def _get_train_sampler(self, train_dataset=None):
            if not training["group_by_length"]:
                return super()._get_train_sampler(train_dataset)
            rows_at_once = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
            return batches.GroupedByLength([len(row["input_ids"]) for row in rows["train"]], rows_at_once, seed)

    seed = run.settings["project"]["seed"]
    lora, training = run.settings["lora"], run.settings["training"]
    gpu = torch.cuda.is_available()
    optimizer = training["optim"] if training["optim"] != "auto" else "paged_adamw_8bit" if gpu else "adamw_torch"
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=training["num_train_epochs"],
        per_device_train_batch_size=training["per_device_train_batch_size"],
        per_device_eval_batch_size=training["per_device_train_batch_size"],
        gradient_accumulation_steps=training["gradient_accumulation_steps"],
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["lr_scheduler_type"],
        warmup_steps=training["warmup_steps"],
        weight_decay=training["weight_decay"],
        max_grad_norm=training["max_grad_norm"],
        optim=optimizer,
        max_length=None,  # rows were checked to fit: nothing may be cut silently
        packing=False,
        gradient_checkpointing=training["gradient_checkpointing"],
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16" and gpu,
        use_cpu=not gpu,
        seed=seed,
        data_seed=seed,
        logging_steps=training["logging_steps"],
        eval_strategy="steps",
        eval_steps=training["eval_steps"],
        save_strategy="steps",
        save_steps=training["save_steps"],
        save_total_limit=training["save_total_limit"],
        report_to="none",  # by default nothing leaves the machine
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["lora_alpha"],
            lora_dropout=lora["lora_dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
    )
    # trl casts a quantized model's adapter to bf16, but on resume peft loads it as fp32: another training
    # from there on. In fp32 throughout, a resumed run equals an uninterrupted one bit for bit.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def describe(run: phase.Run, trainer, rows: dict, dtype: str) -> None:
    """What was resolved, before the work starts."""
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    tokens = sum(len(row["input_ids"]) for row in rows["train"])
    kind = "4-bit " + run.settings["quantization"]["bnb_4bit_quant_type"]
    run.say(
        f"{len(rows['train'])} rows, {tokens} tokens an epoch; {trained / 1e6:.1f} M adapter weights; base in "
        f"{kind if run.settings['quantization']['load_in_4bit'] else dtype}, compute {dtype} on {models.device()}, "
        f"optimizer {trainer.args.optim.value}, seed {trainer.args.seed}"
    )


def follow(run: phase.Run, trainer):
    """Progress lines, complete checkpoints, a stop that saves, and an end to a loss that is no number."""
    import signal

    from transformers import PrinterCallback, TrainerCallback

    class Follow(TrainerCallback):
        def __init__(self):
            self.asked = False
            self.began = time.time()
            self.first = None

        def ask(self, *_):
            self.asked = True
            run.say("stopping after this step; a checkpoint will be saved")

        def on_step_end(self, args, state, control, **kwargs):
            if self.asked:
                control.should_save = control.should_training_stop = True

        def on_save(self, args, state, control, **kwargs):
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args, state, control, logs=None, **kwargs):
            loss = (logs or {}).get("loss", (logs or {}).get("eval_loss"))
            if loss is None:
                return
            if not math.isfinite(loss):
                raise ForgeError(
                    f"the loss became {loss} at step {state.global_step}",
                    "lower training.learning_rate; the last checkpoint is kept",
                )
            if self.first is None:
                self.first, self.began = state.global_step, time.time()
                rest = ""
            else:
                pace = (time.time() - self.began) / max(1, state.global_step - self.first)
                rest = f", {pace * (state.max_steps - state.global_step):.0f} s left"
            kind = "loss" if "loss" in logs else "validation loss"
            run.say(f"  step {state.global_step}/{state.max_steps}: {kind} {loss:.4f}{rest}")

    callback = Follow()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    signal.signal(signal.SIGTERM, callback.ask)
    signal.signal(signal.SIGINT, callback.ask)
    return callback


def save(run: phase.Run, trainer) -> None:
    """The adapter, and the curves without times: the same training gives the same bytes."""
    trainer.model.save_pretrained(str(run.staging), selected_adapters=["default"])
    files.remove(run.staging / "README.md")  # peft's own card names a local path
    config_path = run.staging / "adapter_config.json"
    settings = json.loads(config_path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = run.facts("model")["base_model_name"]
    settings["revision"] = run.facts("model")["revision"]
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()  # a set to peft: its order changes from run to run
    files.write_json(config_path, settings)
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    history = [{key: entry[key] for key in kept if key in entry} for entry in trainer.state.log_history]
    files.write_jsonl(run.staging / "metrics.jsonl", [entry for entry in history if {"loss", "eval_loss"} & set(entry)])


if __name__ == "__main__":
    phase.start(__doc__, "train", work)
