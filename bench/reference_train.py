"""Training an adapter as trl's own documentation shows it: SFTTrainer with trl's defaults, on rows of Model Forge.

The reference of bench/train.py. From the config come the model, the 4-bit kind, the adapter's shape, the course of the
learning rate and the seed. All else is trl's: batches of 8 padded rows, gradient checkpointing, bf16 (its 4-bit layers
compute in it, as its documentation has it), max_length 1024.
Writes adapter/ and figures.json into --out.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def train(config, base, rows, out):
    quantization, training = dict(config["quantization"]), config["training"]
    quantization["bnb_4bit_compute_dtype"] = torch.bfloat16
    dataset = load_dataset("json", data_files=str(rows), split="train").select_columns(["prompt", "completion"])
    trainer = SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(out / "checkpoints"),
            num_train_epochs=1,
            learning_rate=training["learning_rate"],
            lr_scheduler_type=training["lr_scheduler_type"],
            warmup_steps=training["warmup_steps"],
            weight_decay=training["weight_decay"],
            max_grad_norm=training["max_grad_norm"],
            use_cpu=not torch.cuda.is_available(),
            seed=config["project"]["seed"],
            include_num_input_tokens_seen="non_padding",
            report_to="none",
        ),
        train_dataset=dataset,
        quantization_config=BitsAndBytesConfig(**quantization),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **config["lora"]),
    )
    result = trainer.train()
    trainer.save_model(out / "adapter")
    return {
        "seconds": result.metrics["train_runtime"],
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with nothing left at auto")
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL with prompt and completion")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    figures = train(config, arguments.base, arguments.rows, arguments.out)
    (arguments.out / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
