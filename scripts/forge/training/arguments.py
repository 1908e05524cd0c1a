"""The trainer's arguments that every stage shares."""

import importlib.util
from pathlib import Path

from forge.errors import ENVIRONMENT, ForgeError
from forge.training.choices import Choices


def common(settings: dict, choices: Choices, folder: Path, rows_at_once: int, accumulation: int) -> dict:
    """Keyword arguments of transformers' TrainingArguments. `settings` of the phase train."""
    training, seed = settings["training"], settings["project"]["seed"]
    gpu = choices.device != "cpu"
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows_at_once,
        "per_device_eval_batch_size": rows_at_once,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": training["lr_scheduler_type"],
        "warmup_steps": training["warmup_steps"],
        "weight_decay": training["weight_decay"],
        "max_grad_norm": training["max_grad_norm"],
        "optim": choices.optimizer,
        "max_length": None,  # rows were checked to fit: nothing may be cut silently
        "gradient_checkpointing": choices.gradient_checkpointing,
        "bf16": choices.dtype == "bfloat16",
        "fp16": choices.dtype == "float16" and gpu,
        "use_cpu": not gpu,
        "seed": seed,
        "data_seed": seed,
        "logging_steps": training["logging_steps"],
        "save_strategy": "steps",
        "save_steps": training["save_steps"],
        "save_total_limit": training["save_total_limit"],
        "include_num_input_tokens_seen": "non_padding",
        "report_to": reporters(training["report_to"]),
        "run_name": folder.parent.parent.name,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,  # every adapter weight is used in every batch
    }


def reporters(wanted: list[str]) -> list[str] | str:
    """transformers' `report_to`. Raises ForgeError (7) for one that is not installed."""
    for name in wanted:
        if not importlib.util.find_spec(name):
            raise ForgeError(
                f"training.report_to names {name}, which is not installed",
                f"run .venv/bin/python -m pip install {name}, or take it out of training.report_to",
                ENVIRONMENT,
            )
    return wanted or "none"
