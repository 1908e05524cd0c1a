"""What training taught: held-out questions answered with their fact by the finished GGUF, beside the base's GGUF.

Each seed is a project of its own (config/local/learning-<seed>.yaml), made by `make verify-gguf` in this checkout:
another split, another order, another adapter. The config's own seed is the config's own project. A seed that is made
already is not made again, so the projects stay (remove models/*/learning-* and models/learning-* to be rid of them).
The reference is the untrained base, converted and quantized the same way and asked the same questions by the same
llama.cpp.

The JSON line's ours and reference are medians over the seeds of the share of right answers; peak_mb is the
largest of all phases; `rows` has every seed. With the starter a seed takes as long as `make all`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from forge import command, config, files, graph, manifest, questions
from forge.errors import ForgeError
from forge.llamacpp import converter, llama

SEEDS = (42, 1, 2, 3, 4)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: %(default)s")
    arguments = parser.parse_args()
    command.guard(lambda: compare(Path(arguments.config), arguments.seeds), arguments.debug)


def compare(path: Path, seeds: list[int]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as in verify-gguf: base and tuned file on the same device
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as scratch:
        rows = [measured(path, seed, Path(scratch)) for seed in seeds]
    print(
        f"\n{'seed':>10}  {'tuned':>10}  {'base':>10}  {'KL':>6}  {'margin (90%, nats a token)':>30}  {'train s':>8}"
        f"  {'peak MB':>8}"
    )
    for row in rows:
        said = [f"{who['right']} of {who['asked']}" for who in (row["tuned"], row["base"])]
        print(
            f"{row['seed']:>10}  {said[0]:>10}  {said[1]:>10}  {row['mean_kl']:>6.3f}  {described(row['margin']):>30}"
            f"  {row['train_seconds']:>8.0f}  {row['peak_mb']:>8}"
        )
    ours, reference = (statistics.median(row[who]["share"] for row in rows) for who in ("tuned", "base"))
    ratio = round(ours / reference, 4) if reference else None
    peak = max(row["peak_mb"] for row in rows)
    figures = {"ours": ours, "reference": reference, "ratio": ratio, "peak_mb": peak}
    print(json.dumps({"name": "learning", **figures, "rows": rows}), flush=True)


def measured(path: Path, seed: int, scratch: Path) -> dict:
    """The figures of one seed, made first if they are not there."""
    mine = project(path, seed)
    environment = {key: value for key, value in os.environ.items() if key not in harness.OF_MAKE}
    venv = os.environ.get("VENV") or os.path.relpath(sys.prefix)  # make takes no space in a path of its own
    make = ["make", f"VENV={venv}", f"CONFIG={mine}", "verify-gguf"]
    if subprocess.run(make, env=environment, check=False).returncode != 0:
        raise ForgeError(
            f"seed {seed} was not made: {' '.join(make)} failed",
            "read its output above; the figures of the other seeds alone would be a selection",
        )
    configuration = config.load(mine)
    layout, limits = configuration.layout, configuration.values.evaluation
    quantization = configuration.values.gguf.quantizations[0]
    verdict = json.loads((layout.gate("verify-gguf") / "verdict.json").read_text(encoding="utf-8"))
    held = questions.heldout(layout.dataset, limits.questions)
    base = base_gguf(layout.base, configuration.values.model.dtype, quantization, scratch)
    answers = questions.ask_gguf(base, [row["prompt"] for row in held], limits.max_new_tokens)
    judged = [
        {**answer, "contains_facts": questions.right(answer["answer"], row.get("facts"))}
        for row, answer in zip(held, answers, strict=True)
    ]
    files.write_jsonl(layout.gate("verify-gguf") / "base-items.jsonl", judged)
    records = [manifest.read(row.record(layout)) or {} for row in graph.PHASES]
    return {
        "seed": seed,
        "tuned": with_share(verdict["answers"][quantization]),
        "base": with_share(questions.score(judged)),
        "margin": margin(layout),
        "mean_kl": verdict["fidelity"][quantization]["mean_kl"],
        "train_seconds": manifest.read(graph.BY_NAME["train"].record(layout))["seconds"],
        "peak_mb": max(record.get("peak_mb", 0) for record in records),
    }


def project(path: Path, seed: int) -> Path:
    """The config of a seed: the one that was given, or one that extends it."""
    if config.load(path).values.project.seed == seed:
        return path
    mine = Path(f"config/local/learning-{seed}.yaml")
    mine.parent.mkdir(parents=True, exist_ok=True)
    values = {"extends": os.path.relpath(path, mine.parent), "project": {"name": f"learning-{seed}", "seed": seed}}
    mine.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return mine


def margin(layout: graph.Layout) -> dict:
    """The preference margin that `make evaluate` measured, with its interval, its sample size and the verdict."""
    verdict = json.loads((layout.gate("evaluate") / "verdict.json").read_text(encoding="utf-8"))
    found = next((signal for signal in verdict["signals"] if signal["role"] == "gate"), {})
    return {"verdict": verdict["verdict"], **{key: found.get(key) for key in ("value", "interval", "n")}}


def described(found: dict) -> str:
    if not found["interval"]:
        return found["verdict"]
    low, high = found["interval"]
    return f"{found['verdict']} {found['value']:.3f} ({low:.3f} to {high:.3f})"


def with_share(found: dict) -> dict:
    if not found["asked"]:
        raise ForgeError("no held-out question has a fact to look for", "write Q: and A: groups with the fact in bold")
    return {**found, "share": round(found["right"] / found["asked"], 4)}


def base_gguf(model: Path, dtype: str, quantization: str, scratch: Path) -> Path:
    """The untrained base, by the same converter and quantizer; made once a run."""
    made = scratch / f"{quantization}.gguf"
    if made.is_file():
        return made
    readable, full = converter.for_converter(model, scratch / "source"), scratch / "full.gguf"
    converter.convert(readable, full, converter.WHOLE.get(quantization, converter.OUTTYPES[dtype]), "base")
    if quantization in converter.WHOLE:
        return full.rename(made)
    llama.quantize(full, made, quantization)
    full.unlink()
    return made


if __name__ == "__main__":
    main()
