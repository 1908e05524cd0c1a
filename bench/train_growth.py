"""How the time of training grows: with the length of the rows, and with their number.

Length: `--steps` steps of 2,048 tokens each on the config's base, in rows of 128 to 2,048 tokens packed one after the
other. All steps hold as many tokens, so what grows is attention. The first step, in which memory is found, counts.
Number: the whole command scripts/fine_tune.py for 100 to 10,000 rows of about 64 tokens, one epoch, on a random
Llama of 2 layers, 64 wide, with the config's tokenizer: what a base's own arithmetic takes comes on top, per token.
Validation and a checkpoint come once, at the end.

Rows are sentences with their words mixed by a seed, the answer nearly the whole row. --plot draws both curves (needs
matplotlib). The JSON line's ours is the tokens a second at the longest length, its reference that at the shortest;
`rows` has every point.
"""

import json
import random
import tempfile
from pathlib import Path

import harness
from data import prose, said
from forge import chat, command, config, files, models
from forge.errors import ForgeError

LENGTHS = (128, 256, 512, 1024, 2048)
ROWS = (100, 1_000, 10_000)
STEP_TOKENS = 2048
ROW_TOKENS = 64  # of the second part: the starter's rows have 75 in the mean
NEVER = 10**6  # steps
PLOT = harness.ROOT / "docs/training-growth.svg"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--lengths", type=harness.positive, nargs="*", default=LENGTHS, help="default %(default)s")
    parser.add_argument("--rows", type=harness.positive, nargs="*", default=ROWS, help="default %(default)s")
    parser.add_argument("--steps", type=harness.positive, default=4, help="for each length (default %(default)s)")
    parser.add_argument("--plot", type=Path, default=PLOT, help="SVG to write (default docs/training-growth.svg)")
    arguments = parser.parse_args()
    command.guard(lambda: run(arguments), arguments.debug)


def run(arguments) -> None:
    values = harness.resolved(config.load(arguments.config))
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as name:
        root = harness.clone(Path(name) / "ours")
        lengths = [of_length(root, values, length, arguments.steps) for length in sorted(arguments.lengths)]
        tiny = tiny_base(root, values)
        counts = [of_number(root, values, tiny, count) for count in sorted(arguments.rows)]
    draw(arguments.plot, lengths, counts)
    print(f"wrote {arguments.plot}")
    report(lengths, counts)


# -- measuring --------------------------------------------------------------------------------------------


def of_length(root: Path, values: dict, length: int, steps: int) -> dict:
    """Figures of `steps` steps of STEP_TOKENS tokens in rows of `length`."""
    at_once = max(1, STEP_TOKENS // length)
    found = trained(root, values, f"length-{length}", length, steps * at_once, at_once)
    row = {
        "length": length,
        "rows_a_step": at_once,
        "seconds_a_step": round(found["step_seconds"] / found["steps"], 3),
        "tokens_per_second": round(found["tokens"] / found["step_seconds"], 1),
        "peak_mb": found["peak_mb"],
    }
    print(f"length {length}: {row['seconds_a_step']:.2f} s a step, {row['tokens_per_second']:.0f} tokens/s", flush=True)
    return row


def of_number(root: Path, values: dict, base: Path, count: int) -> dict:
    """Seconds of the whole phase for `count` rows."""
    values = {**values, "model": {**values["model"], "base_model_name": str(base)}}
    found = trained(root, values, f"rows-{count}", ROW_TOKENS, count, None)
    row = {
        "count": count,
        "tokens": found["tokens"],
        "seconds": found["whole"],
        "training_seconds": found["seconds"],
        "peak_mb": found["peak_mb"],
    }
    print(f"{count} rows: {row['seconds']:.1f} s, {row['training_seconds']:.1f} s of them training", flush=True)
    return row


def trained(root: Path, values: dict, name: str, length: int, count: int, at_once: int | None) -> dict:
    """Facts of a training of `count` rows of at most `length` tokens, and figures of its command.

    `at_once` rows make a step; None leaves the config's own step.
    """
    step = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": 1} if at_once else {}
    values = {
        **values,
        "project": {**values["project"], "name": name, "system_prompt": ""},
        "data": {
            **values["data"],
            "sources": [{"kind": "records", "path": str(root / f"{name}.jsonl")}],
            "max_tokens": max(64, length),
            "validation_share": 0.1,
            "near_duplicates": 1,
            "thresholds": {"minimum_training_rows": 1},
        },
        "training": {
            **values["training"],
            **step,
            "stages": ["sft"],
            "num_train_epochs": 1,
            "max_length": max(64, length),
            "keep": "last",
            "eval_steps": NEVER,
            "save_steps": NEVER,
            "canary_steps": 0,
        },
    }
    settings = harness.write_config(root, name, values)
    harness.measure(harness.script(root, "download_model.py", settings), root, "model")
    base = root / config.base_folder(values["model"]["base_model_name"])
    write_rows(root / f"{name}.jsonl", models.tokenizer(base), length, count + count // 5 + 4)
    layout = harness.ready_to_train(root, settings, count)
    [figures] = harness.measure(harness.script(root, "fine_tune.py", settings), root, name)
    record = json.loads((root / layout.adapter / "manifest.json").read_text(encoding="utf-8"))
    [stage] = record["facts"]["stages"]
    return {**stage, "whole": round(figures.seconds, 2), "peak_mb": round(figures.peak_mb)}


def write_rows(path: Path, tokenizer, length: int, count: int) -> None:
    """`count` questions whose answers fill rows of `length` tokens as nearly as whole words do."""
    sentences, noise = prose(), random.Random(length)

    def filled(number: int) -> dict:
        frame = len(chat.encode_row(tokenizer, row(number, "x"))["input_ids"]) - 1  # what is not the answer
        return row(number, answer(tokenizer, noise, sentences, length - frame))

    files.write_jsonl(path, map(filled, range(count)))


def answer(tokenizer, noise: random.Random, sentences: list[list[str]], budget: int) -> str:
    if budget < 4:
        raise ForgeError("the rows are shorter than the chat template's own words", "ask for longer ones")
    words: list[str] = []
    while len(words) <= budget:  # a word has one token or more
        words += said(noise, sentences).split()
    text = " ".join(words)
    end = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][budget][0]
    return text[: text.rindex(" ", 0, end + 1)]


def row(number: int, text: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"Part {number:06}?"}],
        "completion": [{"role": "assistant", "content": text}],
    }


def tiny_base(root: Path, values: dict) -> Path:
    """A folder with a random Llama that has the tokenizer of the config's base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = harness.write_config(root, "base", values)
    harness.measure(harness.script(root, "download_model.py", settings), root, "model")
    tokenizer = models.tokenizer(root / config.base_folder(values["model"]["base_model_name"]))
    folder = root / "tiny-llama"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


# -- showing ----------------------------------------------------------------------------------------------


def draw(path: Path, lengths: list[dict], counts: list[dict]) -> None:
    """Both curves as one SVG: the same bytes for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "model-forge", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curve(left, lengths, "length", "seconds_a_step", "tokens a row", f"seconds a step of {STEP_TOKENS:,} tokens")
    for item in lengths:
        place = (item["length"], item["seconds_a_step"])
        told = f"{item['tokens_per_second']:.0f} tok/s"
        left.annotate(told, place, xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    left.set_ylim(0, 1.2 * max((item["seconds_a_step"] for item in lengths), default=1))
    curve(right, counts, "count", "seconds", "rows", "seconds of the whole phase")
    right.set_yscale("log")
    for item in counts:
        place = (item["count"], item["seconds"])
        right.annotate(f"{item['seconds']:.0f} s", place, xytext=(0, 7), textcoords="offset points", ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def curve(axes, items: list[dict], key: str, value: str, under: str, beside: str) -> None:
    places = [item[key] for item in items]
    axes.plot(places, [item[value] for item in items], marker="o", color="#0072b2")
    axes.set_xscale("log")
    axes.set_xticks(places, labels=[f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.margins(0.12, 0.2)
    axes.set_xlabel(under)
    axes.set_ylabel(beside)
    axes.grid(alpha=0.3)


def report(lengths: list[dict], counts: list[dict]) -> None:
    print(f"\n{'length':>8} {'rows a step':>12} {'s a step':>9} {'tokens/s':>9} {'peak MB':>8}")
    for item in lengths:
        print(
            f"{item['length']:>8} {item['rows_a_step']:>12} {item['seconds_a_step']:>9.2f}"
            f" {item['tokens_per_second']:>9.0f} {item['peak_mb']:>8}"
        )
    print(f"\n{'rows':>8} {'tokens':>12} {'whole s':>9} {'train s':>9} {'peak MB':>8}")
    for item in counts:
        print(
            f"{item['count']:>8} {item['tokens']:>12} {item['seconds']:>9.1f} {item['training_seconds']:>9.1f}"
            f" {item['peak_mb']:>8}"
        )
    paces = [item["tokens_per_second"] for item in lengths] or [None]
    ratio = round(paces[-1] / paces[0], 4) if paces[0] else None
    peak = max(item["peak_mb"] for item in [*lengths, *counts])
    figures = {"ours": paces[-1], "reference": paces[0], "ratio": ratio, "peak_mb": peak}
    print(json.dumps({"name": "train-growth", **figures, "rows": [*lengths, *counts]}), flush=True)


if __name__ == "__main__":
    main()
