"""Documents to a training set at size: 1 GB in 100,000 files, and how time grows on the way there.

Ours is scripts/forge_dataset.py (read, clean, screen, split, write, with records and digests) on the starter's base;
the reference (bench/reference_data.py) does what a usual script does with the same files: cut each into pieces of
`max_tokens` tokens, decode them again and write them down. Then the same corpus once more with one file edited, and
once more unchanged.

The corpus is made on the spot: Markdown and text files of about 10 KB each, pages of other programs' documentation
that lie on this machine, their words mixed anew by a seed, so that no two files are alike.
"""

import argparse
import json
import random
import re
import sysconfig
import tempfile
from pathlib import Path

import harness
from forge import command, files
from forge.errors import ForgeError

SIZES = (1_000, 10_000, 100_000)
FILE = 10_000  # bytes of a file: 100,000 of them are 1 GB


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--sizes", type=harness.positive, nargs="+", default=SIZES, help="files (default %(default)s)")
    arguments = parser.parse_args()
    command.guard(lambda: run(arguments), arguments.debug)


def run(arguments: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as scratch:
        for count in arguments.sizes:
            rows.append(measured(Path(scratch), count, Path(arguments.config).resolve()))
            print_row(rows[-1], first=len(rows) == 1)
    last = rows[-1]
    figures = {name: last[name] for name in ("ours", "reference", "ratio", "peak_mb")}
    print(json.dumps({"name": "data", **figures, "rows": rows}), flush=True)


def measured(scratch: Path, count: int, settings: Path) -> dict:
    """Figures for a corpus of `count` files: seconds of each run, MB a second, peak memory in MB."""
    checkout = harness.clone(scratch / f"checkout-{count}")
    size = corpus(checkout / "documents", count)
    write_config(checkout, settings)
    python = str(checkout / "venv/bin/python")
    ours = [python, "scripts/forge_dataset.py", "--config", "config/data.yaml"]
    harness.measure([python, "scripts/download_model.py", "--config", "config/data.yaml"], checkout, "model")
    [first] = harness.measure(ours, checkout, "ours", says="dataset: wrote", forks=True)
    [reference] = harness.measure(
        [python, str(harness.ROOT / "bench/reference_data.py"), "documents", "reference.jsonl", str(base(checkout))],
        checkout,
        "reference",
    )
    [unchanged] = harness.measure(ours, checkout, "unchanged", says="nothing to do")
    edited = next(iter(sorted((checkout / "documents").rglob("*.md"))))
    edited.write_text("# Edited\n\nAnother sentence stands here now.\n", encoding="utf-8")
    [again] = harness.measure(ours, checkout, "edited", says="dataset: wrote")
    files.remove(checkout)
    return {
        "files": count,
        "mb": round(size / 1e6, 3),
        "ours": round(first.seconds, 2),
        "reference": round(reference.seconds, 2),
        "ratio": round(first.seconds / reference.seconds, 4),
        "mb_per_second": round(size / 1e6 / first.seconds, 2),
        "peak_mb": round(first.peak_mb),
        "reference_peak_mb": round(reference.peak_mb),
        "one_edited": round(again.seconds, 2),
        "unchanged": round(unchanged.seconds, 2),
    }


def base(checkout: Path) -> Path:
    return next((checkout / "models/base").glob("*/*/tokenizer.json")).parent


def print_row(row: dict, first: bool) -> None:
    if first:
        print(
            f"\n{'files':>8} {'MB':>7} {'ours s':>8} {'MB/s':>6} {'reference s':>12} {'ratio':>6} {'peak MB':>16}"
            f" {'one edited s':>13} {'unchanged s':>12}"
        )
    peaks = f"{row['peak_mb']} / {row['reference_peak_mb']}"
    print(
        f"{row['files']:>8} {row['mb']:>7.0f} {row['ours']:>8.1f} {row['mb_per_second']:>6.2f}"
        f" {row['reference']:>12.1f} {row['ratio']:>6.2f} {peaks:>16} {row['one_edited']:>13.1f}"
        f" {row['unchanged']:>12.1f}",
        flush=True,
    )


def write_config(checkout: Path, settings: Path) -> None:
    values = {
        "extends": str(settings),
        "project": {"name": "data"},
        "data": {"sources": [{"kind": "documents", "path": "documents"}], "mode": "strict"},
    }
    (checkout / "config/data.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML


def corpus(folder: Path, count: int) -> int:
    """Write `count` files below `folder`, 1,000 a folder; their size in bytes."""
    sentences = prose()
    size = 0
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"page-{number:06}.{'txt' if number % 4 == 3 else 'md'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_bytes(page(random.Random(number), sentences, number))
    return size


def page(noise: random.Random, sentences: list[list[str]], number: int) -> bytes:
    """A page: headings, paragraphs, lists, a table, a block of code."""
    lines = [f"# Page {number}", ""]
    length = 0
    while length < FILE:
        kind = noise.random()
        if kind < 0.12:
            text = f"## {' '.join(noise.choice(sentences)[:5])}"
        elif kind < 0.2:
            text = "\n".join(f"- {said(noise, sentences)}" for _ in range(noise.randint(2, 6)))
        elif kind < 0.24:
            cells = [" ".join(noise.choice(sentences)[:2]) for _ in range(8)]
            text = f"| {cells[0]} | {cells[1]} |\n|---|---|\n| {cells[2]} | {cells[3]} |\n| {cells[4]} | {cells[5]} |"
        elif kind < 0.28:
            text = f"```sh\nrun --input {noise.random():.6f} --output {noise.randint(0, 10**6)}\n```"
        else:
            text = " ".join(said(noise, sentences) for _ in range(noise.randint(2, 9)))
        lines += [text, ""]
        length += len(text) + 2
    return "\n".join(lines).encode()


def said(noise: random.Random, sentences: list[list[str]]) -> str:
    """A sentence of the length of a real one, its words from three of them."""
    words = [word for _ in range(3) for word in noise.choice(sentences)]
    noise.shuffle(words)
    return " ".join(words[: noise.randint(6, 24)]).capitalize() + "."


def prose() -> list[list[str]]:
    """Sentences, as lists of words, of the docstrings and comments in Python's own library."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for sentence in re.findall(r"[A-Z][a-z]+(?: [a-z]+,?){5,20}\.", text):
            found.append(sentence.rstrip(".").lower().split())
    if len(found) < 500:
        raise ForgeError("Python's library holds too little text", "install it with its sources")
    return found


if __name__ == "__main__":
    main()
