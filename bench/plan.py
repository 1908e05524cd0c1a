"""The memory that `make plan` predicts of training, beside what training takes, over a grid on the CPU.

Each point of the grid is a model of random weights on a real vocabulary, with some settings. It is trained for two
steps by scripts/forge/training in a process of its own; the reference is that process's largest resident memory
(ru_maxrss), nothing taken off. Ours is the prediction, made before by scripts/forge/planning/estimate.py, which sees
the base's config.json and the settings alone.

The JSON line's ours and reference are MB of the point that is predicted worst; mean_error and worst_error are shares
of the real peak.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import harness
from forge import command
from forge.errors import ForgeError
from forge.llamacpp import llama

VOCABULARIES = {"narrow": "starcoder", "middle": "llama-bpe", "wide": "qwen2"}
SHAPES = {  # hidden width, layers, heads, heads of key and value, width of the MLP
    "narrow": (256, 4, 4, 2, 1024),
    "middle": (576, 12, 9, 3, 1536),
    "wide": (1024, 8, 16, 8, 3072),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class Point:
    """`rows` at once of `length` tokens, half of them with a loss."""

    model: str
    rows: int = 1
    length: int = 128
    checkpointing: bool = False
    unpack: bool = True
    rank: int = 16
    accumulation: int = 1


def make_base(folder: Path, name: str) -> None:
    """A model folder with random weights and a vocabulary of llama.cpp's source."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    vocabulary = llama.source() / f"models/ggml-vocab-{VOCABULARIES[name]}.gguf"
    tokenizer = AutoTokenizer.from_pretrained(str(vocabulary.parent), gguf_file=vocabulary.name)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    hidden, layers, heads, shared, width = SHAPES[name]
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=2048,
        tie_word_embeddings=name != "wide",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(folder)


def settings_of(point: Point) -> dict:
    from forge import schema

    values = schema.TrainingConfig.model_validate(
        {
            "project": {"name": "plan"},
            "model": {"base_model_name": "./base"},
            "data": {"sources": [{"kind": "documents", "path": "none"}]},
            "quantization": {"unpack": point.unpack},
            "lora": {"r": point.rank, "lora_dropout": 0.0},
            "training": {
                "num_train_epochs": 1,
                "per_device_train_batch_size": point.rows,
                "gradient_accumulation_steps": point.accumulation,
                "max_length": max(point.length, 64),
                "gradient_checkpointing": point.checkpointing,
                "eval_steps": 2,
                "save_steps": 2,
                "canary_steps": 0,
            },
        }
    ).model_dump(mode="json")
    return {key: values[key] for key in ("quantization", "lora", "training", "project")}


def train(point: Point, folder: Path, place: Path) -> None:
    """Two steps, in this process. Prints the largest resident memory in bytes."""
    from forge import models

    models.prepare(repeats=True)
    from forge.planning import resolving
    from forge.training import stages, supervised

    settings = settings_of(point)
    tokenizer = models.tokenizer(folder)
    chosen = resolving.resolve(settings, folder)
    kind = object.__new__(supervised.Supervised)
    kind.settings, kind.tokenizer = settings, tokenizer
    kind.rows_at_once, kind.accumulation = point.rows, point.accumulation
    ids = [3 + number * 7 % 1000 for number in range(point.length)]
    labels = [-100 if number < point.length // 2 else token for number, token in enumerate(ids)]
    row = {"input_ids": ids, "labels": labels}
    kind.rows = {"train": [row] * (2 * point.rows * point.accumulation), "validation": [row]}
    run = types.SimpleNamespace(
        settings=settings, layout=types.SimpleNamespace(base=folder), say=lambda text="": print(text, file=sys.stderr)
    )
    stages.Stage(run, tokenizer, chosen, "sft", kind, place, None).work()
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def grid() -> list[Point]:
    """Every model with every kind of settings."""
    kinds = [
        {"rows": 1, "length": 128},
        {"rows": 4, "length": 128},
        {"rows": 4, "length": 512},
        {"rows": 1, "length": 512, "checkpointing": True},
        {"rows": 4, "length": 512, "checkpointing": True},
        {"rows": 4, "length": 128, "unpack": False},
        {"rows": 4, "length": 512, "unpack": False, "checkpointing": True},
        {"rows": 4, "length": 128, "rank": 64},
        {"rows": 2, "length": 256, "accumulation": 2},
    ]
    return [Point(model, **kind) for model in SHAPES for kind in kinds]


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--points", type=harness.positive, help="only so many, spread over the grid")
    parser.add_argument("--wait-for", type=Path, help="begin no point while this file is there")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, text, folder = arguments.child
        {"base": child_base, "train": child_train}[kind](Point(**json.loads(text)), Path(folder))
        return
    command.guard(lambda: run(arguments), arguments.debug)


def child_base(point: Point, folder: Path) -> None:
    make_base(folder, point.model)


def child_train(point: Point, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        train(point, folder, Path(place))
    sys.stdout.flush()
    os._exit(0)  # without the libraries' tear-down


def run(arguments: argparse.Namespace) -> None:
    points = grid()
    if arguments.points:
        points = points[:: max(1, len(points) // arguments.points)][: arguments.points]
    rows = []
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as scratch:
        for point in points:
            while arguments.wait_for and arguments.wait_for.exists():
                time.sleep(5)
            rows.append(measured(point, Path(scratch) / point.model))
            print_row(rows[-1], first=len(rows) == 1)
    report(rows)


def measured(point: Point, folder: Path) -> dict:
    if not folder.exists():
        child("base", point, folder)
    expected = predicted(point, folder)
    real = child("train", point, folder)["peak"] / 1e6
    return {
        **asdict(point),
        "ours": round(expected),
        "reference": round(real),
        "ratio": round(expected / real, 4),
        "error": round(abs(expected - real) / real, 4),
    }


def child(kind: str, point: Point, folder: Path) -> dict:
    """What a process of its own prints last, as JSON."""
    command = [sys.executable, __file__, "--child", kind, json.dumps(asdict(point)), str(folder)]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        print(done.stderr[-3000:], file=sys.stderr)
        raise ForgeError(f"{point} ended with {done.returncode}", "read its output above")
    return json.loads(done.stdout.splitlines()[-1]) if kind == "train" else {}


def predicted(point: Point, folder: Path) -> float:
    """MB that are resident at the peak."""
    from forge import models
    from forge.planning import estimate
    from forge.planning.batch import Batch

    models.prepare()
    from forge.training import choices

    settings = settings_of(point)
    found = estimate.Estimator.of(folder, None, point.length)
    targets = point.rows * (point.length - point.length // 2)
    found.batches = lambda settings: [Batch((point.length,) * point.rows, targets)]
    found.steps = lambda settings: 2 * point.accumulation
    return found.train(settings, choices.possible(settings)[0]).resident / 1e6


def print_row(row: dict, first: bool) -> None:
    keys = ("model", "rows", "length", "checkpointing", "unpack", "rank", "accumulation")
    if first:
        print(f"{'model':8} rows length checkpointing unpack rank batches  predicted MB  real MB  error")
    name, rows, length, checkpointing, unpack, rank, batches = (row[key] for key in keys)
    print(
        f"{name:8} {rows:4} {length:6} {'on' if checkpointing else 'off':>13} {'yes' if unpack else 'no':>6} {rank:4}"
        f" {batches:7}  {row['ours']:12}  {row['reference']:7}  {100 * (row['ratio'] - 1):+4.0f}%",
        flush=True,
    )


def report(rows: list[dict]) -> None:
    worst = max(rows, key=lambda row: row["error"])
    mean = sum(row["error"] for row in rows) / len(rows)
    print(f"error: mean {100 * mean:.1f}%, worst {100 * worst['error']:.1f}% of the real peak, n={len(rows)}")
    line = {
        "name": "plan",
        **{key: worst[key] for key in ("ours", "reference", "ratio")},
        "peak_mb": max(row["reference"] for row in rows),
        "mean_error": round(mean, 4),
        "worst_error": worst["error"],
        "rows": rows,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
