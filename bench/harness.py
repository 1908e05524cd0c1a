"""What the benchmarks share: a project to measure, a command's figures, turns, a table and one line of JSON.

How a command is measured, ours and the reference alike:
  seconds   wall clock, from its start to its end
  peak_mb   resident memory of the process and all its descendants, summed by psutil every 50 ms; in MB (10**6
            bytes). A peak shorter than that can be missed; pages that processes share count once for each, unless
            the benchmark says that its processes are forks: then they are divided among them (proportional set
            size, every 500 ms). A GPU's memory is not in it. One look took 1.3 ms, 3% of a core, beside 80 processes.
  written_mb  what the kernel counts as written to a disk (write_bytes in /proc/PID/io, descendants that ended
            included). Files on a tmpfs count nothing: set TMPDIR to a folder on a disk if /tmp is none.
A command may print "benchmark part NAME" when it begins a part of its work; each part then has figures of its own.
What runs before the first such line belongs to the first part.

pyperf and hyperfine measure commands, too. hyperfine is no Python package; pyperf takes all repetitions of one
command before the next, so a machine that slows down falls on one side, and it knows neither bytes nor parts.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from forge import config, files, manifest  # noqa: E402
from forge.errors import ForgeError  # noqa: E402

INTERVAL = 0.05  # seconds
PART = "benchmark part "  # in front of a part's name; no phase prints it
# `make bench-all` hands its own settings down: the makes that are measured must not see them.
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "VENV", "CONFIG", "PROMPT")
COPIED = ("scripts", "config", "corpus", "scenarios", "Makefile", "Modelfile.template", "gguf_model_manifest.json")

# Settings that the libraries have under the same name.
SHARED = {
    "quantization": (
        "load_in_4bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_compute_dtype",
    ),
    "training": (
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "max_length",
        "optim",
        "gradient_checkpointing",
        "group_by_length",
        "logging_steps",
        "eval_steps",
        "save_steps",
        "save_total_limit",
    ),
}


@dataclass
class Figures:
    """One measurement of a command or of a part of it."""

    name: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    written_mb: float = 0.0


def parser(doc: str, repeat: int) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--repeat", type=positive, default=repeat, help=f"measurements a side (default {repeat})")
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def clone(folder: Path) -> Path:
    """A fresh checkout in `folder` that uses this environment: nothing made, nothing to set up."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "venv/bin").mkdir(parents=True)
    for path in [*map(ROOT.joinpath, COPIED), *ROOT.glob("requirements-*.txt")]:
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, folder / path.name)
    wrapper = folder / "venv/bin/python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    for stamp in ("light.ok", "ready.ok"):
        (folder / "venv" / stamp).touch()
    return folder


# -- a project to measure -------------------------------------------------------------------------------


def resolved(configuration: config.Config) -> dict:
    """The config's values with every path absolute, so that they mean the same in another folder."""
    values = configuration.values.model_dump(mode="json")
    for source in values["data"]["sources"]:
        source["path"] = str(Path(source["path"]).expanduser().absolute())
    if values["model"]["chat_template"]:
        values["model"]["chat_template"] = str(Path(values["model"]["chat_template"]).absolute())
    if values["model"]["base_model_name"].startswith((".", "~")):
        values["model"]["base_model_name"] = str(Path(values["model"]["base_model_name"]).expanduser().absolute())
    return values


def plain(values: dict, choices: dict) -> dict:
    """Sections quantization and training for a plain script: nothing at auto, no key that only we have.

    `choices` is what our training resolved and recorded.
    """
    found = {name: {key: values[name][key] for key in keys} for name, keys in SHARED.items()}
    found["quantization"]["bnb_4bit_compute_dtype"] = choices["dtype"]
    found["training"]["optim"] = choices["optimizer"]
    found["training"]["gradient_checkpointing"] = choices["gradient_checkpointing"]
    return found


def write_config(root: Path, name: str, values: dict) -> str:
    """Write config/<name>.yaml of a checkout; the file as its scripts take it."""
    path = Path("config") / f"{name}.yaml"
    (root / path).write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def script(root: Path, name: str, settings: str, *more: str) -> list[str]:
    """The command that runs a phase's script by itself."""
    return [str(root / "venv/bin/python"), f"scripts/{name}", "--config", settings, *more]


def ready_to_train(root: Path, settings: str, count: int) -> config.Layout:
    """Base, rows and the rows' gate of a config; `count` of its training rows are kept, drawn by the project's seed.

    Raises ForgeError when it has fewer.
    """
    for name in ("download_model.py", "forge_dataset.py"):
        measure(script(root, name, settings), root, name)
    configuration = config.load(root / settings)
    keep_rows(root / configuration.layout.dataset, count, configuration.values.project.seed)
    measure(script(root, "validate_dataset.py", settings), root, "validate")
    return configuration.layout


def keep_rows(dataset: Path, count: int, seed: int) -> None:
    """Leave `count` training rows in a dataset, in their order, and put its record right."""
    rows = files.read_jsonl(dataset / "train.jsonl")
    if len(rows) < count:
        raise ForgeError(
            f"{count} training rows are wanted, the data has {len(rows)}",
            "ask for fewer steps, or name a config with more documents",
        )
    kept = sorted(random.Random(seed).sample(range(len(rows)), count))
    files.write_jsonl(dataset / "train.jsonl", [rows[place] for place in kept])
    record = json.loads((dataset / "manifest.json").read_text(encoding="utf-8"))
    record["subject"] = manifest.describe(dataset, [item["name"] for item in record["subject"]])
    manifest.write(dataset / "manifest.json", record)


# -- measuring ------------------------------------------------------------------------------------------


def measure(
    command: list[str],
    folder: Path,
    name: str,
    fails: bool = False,
    says: str = "",
    forks: bool = False,
    log: Path | None = None,
) -> list[Figures]:
    """Run a command in `folder`; its figures, or those of its parts when it names them. `log` keeps its output.

    Raises ForgeError with the end of its output when it fails, or succeeds where it `fails`, or does not say
    `says`: a command that did not do its job has no figures.
    """
    environment = {key: value for key, value in os.environ.items() if key not in OF_MAKE}
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    parts, begun, lines, ended = [Figures(name)], [(started, 0.0)], [], threading.Event()

    def listen() -> None:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(PART):
                if any(item.startswith(PART) for item in lines[:-1]):
                    begun.append((time.perf_counter(), written_mb(process.pid)))
                    parts.append(Figures(name))
                parts[-1].name = line.removeprefix(PART).strip()

    def sample() -> None:
        while True:
            part, resident = parts[-1], resident_mb(process.pid, forks)
            part.peak_mb = max(part.peak_mb, resident)
            if ended.wait(INTERVAL * 10 if forks else INTERVAL):
                return

    threads = [threading.Thread(target=work, daemon=True) for work in (listen, sample)]
    for thread in threads:
        thread.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its counters are there until it is waited for
        end = (time.perf_counter(), written_mb(process.pid))
    finally:  # however it ends, it leaves no process behind
        os.killpg(process.pid, signal.SIGKILL)
        ended.set()
        for thread in threads:
            thread.join()
        process.wait()
    output = "".join(lines)
    if log is not None:
        log.write_text(output, encoding="utf-8")
    if (process.returncode != 0) != fails or says not in output:
        print(output[-3000:], end="", file=sys.stderr)
        raise ForgeError(
            f"{' '.join(command)} ended with {process.returncode}" + (f" and without {says!r}" if says else ""),
            "read its output above",
        )
    for part, start, stop in zip(parts, begun, [*begun[1:], end], strict=True):
        part.seconds, part.written_mb = stop[0] - start[0], stop[1] - start[1]
    return parts


def resident_mb(pid: int, forks: bool = False) -> float:
    """Resident memory of a process and its descendants, now; with `forks` what they share counts once."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                total += process.memory_full_info().pss if forks else process.memory_info().rss
    return total / 1e6


def written_mb(pid: int) -> float:
    """Written by a process and those of its descendants that ended."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:")) / 1e6


def alternate(sides: list[Callable[[], list[Figures]]], repeat: int) -> list[list[list[Figures]]]:
    """Each side in turn, `repeat` times: for each side its figures, round by round."""
    rounds: list[list[list[Figures]]] = [[] for _ in sides]
    for _ in range(repeat):
        for side, found in zip(sides, rounds, strict=True):
            found.append(side())
    return rounds


# -- reporting --------------------------------------------------------------------------------------------


def total(name: str, figures: list[Figures]) -> Figures:
    return Figures(
        name,
        sum(item.seconds for item in figures),
        max(item.peak_mb for item in figures),
        sum(item.written_mb for item in figures),
    )


def row(name: str, ours: list[Figures], reference: list[Figures]) -> dict:
    """Medians of both sides, with the range and number of seconds; None where a side has none."""
    sides = {"ours": _medians(ours), "reference": _medians(reference)}
    seconds = {side: found and found["seconds"] for side, found in sides.items()}
    ratio = round(seconds["ours"] / seconds["reference"], 4) if all(sides.values()) else None
    return {"name": name, **seconds, "ratio": ratio, "detail": sides}


def _medians(figures: list[Figures]) -> dict | None:
    if not figures:
        return None
    values = {key: [asdict(item)[key] for item in figures] for key in ("seconds", "peak_mb", "written_mb")}
    medians = {key: round(statistics.median(found), 3) for key, found in values.items()}
    spread = {"min": round(min(values["seconds"]), 3), "max": round(max(values["seconds"]), 3), "n": len(figures)}
    return {**medians, **spread}


def report(name: str, rows: list[dict], headline: dict) -> None:
    """The table, then as the last line one JSON object: the claim's figures are those of `headline`."""
    heads = ("", "ours s", "min..max (n)", "reference s", "min..max (n)", "ratio", "peak MB", "written MB")
    cells = [heads, *([item["name"], *_columns(item)] for item in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(heads))]
    print("\nours beside the reference, medians; peak and written: ours / reference")
    for line in cells:
        first, *others = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))
    keys = ("ours", "reference", "ratio")
    peak = headline["detail"]["ours"]["peak_mb"]
    print(json.dumps({"name": name, **{key: headline[key] for key in keys}, "peak_mb": peak, "rows": rows}), flush=True)


def _columns(item: dict) -> list[str]:
    ours, reference = item["detail"]["ours"], item["detail"]["reference"]
    columns = []
    for side in (ours, reference):
        spread = f"{side['min']:.2f}..{side['max']:.2f} ({side['n']})" if side else "-"
        columns += [f"{side['seconds']:.2f}" if side else "-", spread]
    columns.append(f"{item['ratio']:.3f}" if item["ratio"] is not None else "-")
    for key in ("peak_mb", "written_mb"):
        columns.append(" / ".join(f"{side[key]:.0f}" if side else "-" for side in (ours, reference)))
    return columns
