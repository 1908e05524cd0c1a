"""Training an adapter on the starter's base: useful tokens a second, memory, and the loss on held-out rows.

Ours is scripts/fine_tune.py with the config's settings, steps of 8 rows. The references train the same base on the
same rows, each once, with the same adapter (rank, alpha, dropout, modules), learning rate and seed:
  trl            bench/reference_train.py: trl's SFTTrainer, NF4, the config's course of the learning rate; all else
                 is trl's default, as are its 8 padded rows a step
  trl-sft        `trl sft`, trl's command line, with load_in_4bit; all else is its default
  trl-sft-lora   the same without load_in_4bit, which is its default
  tunekit        `tunekit train` of tunekit 0.1.1 with its defaults: 16 rows a step, fp32 on a CPU, no 4 bits, loss on
                 every token
  tunekit-qlora  the same with load_in_4bit

Padding is not counted. The clock is transformers' own (train_runtime) on every side: steps, validation, checkpoints;
ours alone validates, and that is in its figure. `whole` is the command from its start to its end. The loss is measured
afterwards by bench/heldout.py, in the same way for all adapters. Each round has another seed, and the sides take turns.

The JSON line's ours and reference are useful tokens a second, ours and trl's; its peak_mb is ours; `rows` compares ours
with each reference.
"""

import functools
import json
import os
import re
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import yaml
from forge import command, config, files
from forge.errors import ENVIRONMENT, ForgeError

ROWS_A_STEP = 8  # trl's own batch
TUNEKIT_ROWS = 16  # a step, tunekit's own
OURS = "ours"


@dataclass
class Trained:
    """One training of one side. `seconds` of train(); `tokens` 0 where the side does not count them; `loss` in nats
    a token that carries loss, set afterwards."""

    side: str
    adapter: Path
    figures: harness.Figures
    seconds: float
    steps: int
    tokens: int
    loss: float = 0.0

    @property
    def pace(self) -> float:
        return self.tokens / self.seconds

    @property
    def whole(self) -> float:
        return self.figures.seconds

    @property
    def peak_mb(self) -> float:
        return self.figures.peak_mb


def main() -> None:
    parser = harness.parser(__doc__, repeat=3)
    parser.add_argument("--config", default="config/training_config.yaml", help="the config file")
    parser.add_argument("--steps", type=harness.positive, default=8, help="optimizer steps of 8 rows (default 8)")
    parser.add_argument("--sides", nargs="+", choices=list(REFERENCES), default=list(REFERENCES), help="references")
    arguments = parser.parse_args()
    command.guard(lambda: compare(arguments), arguments.debug)


def compare(arguments) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # all models are folders: nothing is asked for
    configuration = config.load(arguments.config)
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as name:
        os.environ["HF_DATASETS_CACHE"] = str(Path(name) / "datasets")
        project = Project(Path(name), configuration, arguments.steps)
        sides: dict[str, Callable] = {OURS: ours, **{side: REFERENCES[side] for side in arguments.sides}}
        rounds = []
        for number in range(arguments.repeat):
            seed = configuration.values.project.seed + number
            trained = [shown(train(project, seed)) for train in sides.values()]
            project.weigh(trained)
            rounds.append(trained)
    require_equal_work(rounds)
    report([list(side) for side in zip(*rounds, strict=True)], project.base_loss)


# -- the sides --------------------------------------------------------------------------------------------


class Project:
    """A checkout with the rows to train on, and the same rows and settings for the references."""

    def __init__(self, folder: Path, configuration: config.Config, steps: int):
        self.folder, self.root, self.steps = folder, harness.clone(folder / "ours"), steps
        self.values = harness.resolved(configuration)
        self.values["project"]["name"] = "bench"
        self.values["training"].update(self.settings(self.values["training"]))
        self.settings_file = harness.write_config(self.root, "bench", self.values)
        self.layout = harness.ready_to_train(self.root, self.settings_file, steps * ROWS_A_STEP)
        self.base, self.dataset = self.root / self.layout.base, self.root / self.layout.dataset
        self.rows = self.plain_rows(folder / "rows")
        self.base_loss = 0.0

    def settings(self, training: dict) -> dict:
        at_once = min(training["per_device_train_batch_size"], ROWS_A_STEP)
        if ROWS_A_STEP % at_once:
            raise ForgeError(
                f"a step has {ROWS_A_STEP} rows, {at_once} at once do not divide them",
                "set training.per_device_train_batch_size to 1, 2, 4 or 8",
            )
        return {
            "stages": ["sft"],
            "num_train_epochs": 1,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": ROWS_A_STEP // at_once,
            "keep": "last",
            "canary_steps": 0,  # the references have no such prompts
        }

    def plain_rows(self, folder: Path) -> Path:
        """The training rows as all references read them: a folder with one file."""
        rows = files.read_jsonl(self.dataset / "train.jsonl")
        if any("prompt" not in row for row in rows):
            raise ForgeError("the references need rows of prompt and completion", "name a config with documents")
        folder.mkdir()
        plain = [{key: row[key] for key in ("prompt", "completion")} for row in rows]
        files.write_jsonl(folder / "train.jsonl", plain)
        return folder / "train.jsonl"

    def with_seed(self, seed: int) -> dict:
        return {**self.values, "project": {**self.values["project"], "seed": seed}}

    def out(self, side: str) -> Path:
        """An empty folder, which one training of one side fills; the adapters of a round lie side by side."""
        folder = self.folder / side
        files.remove(folder)
        folder.mkdir()
        return folder

    def facts(self) -> dict:
        record = self.root / self.layout.adapter / "manifest.json"
        return json.loads(record.read_text(encoding="utf-8"))["facts"]

    def weigh(self, trained: list[Trained]) -> None:
        """Give each adapter its loss on the held-out rows."""
        out = self.folder / "heldout.json"
        command = [sys.executable, str(harness.ROOT / "bench/heldout.py"), self.base, self.dataset, out]
        harness.measure([*map(str, command), *(str(item.adapter) for item in trained)], self.folder, "held-out")
        found = json.loads(out.read_text(encoding="utf-8"))
        self.base_loss = found["base"]
        for item, loss in zip(trained, found["adapters"], strict=True):
            item.loss, item.tokens = loss, item.tokens or found["tokens"]


def ours(project: Project, seed: int) -> Trained:
    settings = harness.write_config(project.root, "bench", project.with_seed(seed))
    command = harness.script(project.root, "fine_tune.py", settings, "--force")
    [figures] = harness.measure(command, project.root, OURS)
    [stage] = project.facts()["stages"]
    adapter = project.root / project.layout.adapter
    return Trained(OURS, adapter, figures, **{key: stage[key] for key in ("seconds", "steps", "tokens")})


def trl(project: Project, seed: int) -> Trained:
    out, values = project.out("trl"), project.with_seed(seed)
    values.update(harness.plain(values, project.facts()["choices"]))
    (out / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, str(harness.ROOT / "bench/reference_train.py"), "--config", str(out / "settings.yaml")]
    command += ["--base", str(project.base), "--rows", str(project.rows), "--out", str(out)]
    [figures] = harness.measure(command, out, "trl")
    found = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    return Trained("trl", out / "adapter", figures, **found)


def trl_sft(project: Project, seed: int, four_bit: bool) -> Trained:
    side = "trl-sft" if four_bit else "trl-sft-lora"
    out, lora = project.out(side), project.values["lora"]
    settings = {
        "model_name_or_path": str(project.base),
        "dataset_name": str(project.rows.parent),
        "output_dir": str(out / "adapter"),
        "num_train_epochs": 1,
        "learning_rate": project.values["training"]["learning_rate"],
        "seed": seed,
        "use_peft": True,
        "load_in_4bit": four_bit,
        "lora_r": lora["r"],
        "lora_alpha": lora["lora_alpha"],
        "lora_dropout": lora["lora_dropout"],
        "lora_target_modules": lora["target_modules"],
        "use_cpu": project.facts()["choices"]["device"] == "cpu",
        "report_to": "none",
    }
    (out / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    [figures] = harness.measure([*program("trl"), "sft", "--config", "settings.yaml"], out, side, log=out / "log")
    printed = re.findall(r"'train_runtime': '?([\d.e+]+)", (out / "log").read_text(encoding="utf-8"))
    if len(printed) != 1:
        raise ForgeError("trl sft did not print its train_runtime", "see what another version of trl prints")
    found = {"seconds": float(printed[0]), "steps": project.steps, "tokens": 0}
    return Trained(side, out / "adapter", figures, **found)


def tunekit(project: Project, seed: int, four_bit: bool) -> Trained:
    side = "tunekit-qlora" if four_bit else "tunekit"
    out, lora = project.out(side), project.values["lora"]
    rows = [{"messages": [*row["prompt"], *row["completion"]]} for row in files.read_jsonl(project.rows)]
    files.write_jsonl(out / "rows.jsonl", rows)
    settings = {
        "model": {"name": str(project.base), "load_in_4bit": four_bit},
        "data": {"path": str(out / "rows.jsonl"), "eval_fraction": 0.0},  # else it keeps rows from training
        "lora": {
            "r": lora["r"],
            "alpha": int(lora["lora_alpha"]),
            "dropout": lora["lora_dropout"],
            "target_modules": lora["target_modules"],
        },
        "train": {
            "output_dir": str(out / "adapter"),
            "epochs": 1,
            "lr": project.values["training"]["learning_rate"],
            "seed": seed,
        },
    }
    (out / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    [figures] = harness.measure([*program("tunekit"), "train", "settings.yaml"], out, side)
    told = json.loads((out / "adapter/tunekit.json").read_text(encoding="utf-8"))
    if told["train_examples"] != len(rows):
        raise ForgeError(f"tunekit trained {told['train_examples']} rows of {len(rows)}", "compare the rows")
    found = {"seconds": told["metrics"]["train_runtime"], "steps": -(-len(rows) // TUNEKIT_ROWS), "tokens": 0}
    return Trained(side, out / "adapter", figures, **found)


def program(name: str) -> list[str]:
    """A program of this environment."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        raise ForgeError(f"{name} is not installed", "run make test, or leave it out with --sides", ENVIRONMENT)
    return [sys.executable, str(path)]


REFERENCES = {
    "trl": trl,
    "trl-sft": functools.partial(trl_sft, four_bit=True),
    "trl-sft-lora": functools.partial(trl_sft, four_bit=False),
    "tunekit": functools.partial(tunekit, four_bit=False),
    "tunekit-qlora": functools.partial(tunekit, four_bit=True),
}


def shown(item: Trained) -> Trained:
    print(f"{item.side}: {item.seconds:.1f} s of training, {item.whole:.1f} s, {item.peak_mb:.0f} MB", flush=True)
    return item


# -- the report -------------------------------------------------------------------------------------------


def require_equal_work(rounds: list[list[Trained]]) -> None:
    """Every side trained as many tokens, and trl in as many steps. Raises ForgeError: else no figure is comparable."""
    for trained in rounds:
        mine = trained[0]
        for item in trained[1:]:
            if abs(item.tokens - mine.tokens) > 0.01 * mine.tokens:
                raise ForgeError(f"{item.side} trained {item.tokens} tokens, ours {mine.tokens}", "compare the rows")
            if item.side == "trl" and item.steps != mine.steps:
                raise ForgeError(f"{item.side} took {item.steps} steps, ours {mine.steps}", "compare the settings")


def summary(trainings: list[Trained]) -> dict:
    """Medians over the rounds; the mean of the losses, for each seed has its own."""
    found = {
        "tokens_per_second": round(statistics.median(item.pace for item in trainings), 1),
        "min": round(min(item.pace for item in trainings), 1),
        "max": round(max(item.pace for item in trainings), 1),
        "n": len(trainings),
        "tokens": trainings[0].tokens,
        "steps": trainings[0].steps,
    }
    for key in ("seconds", "whole", "peak_mb"):
        found[key] = round(statistics.median(getattr(item, key) for item in trainings), 2)
    return {**found, "loss": round(statistics.mean(item.loss for item in trainings), 4)}


def report(sides: list[list[Trained]], base_loss: float) -> None:
    mine, *others = [(side[0].side, summary(side)) for side in sides]
    print(f"\nuseful tokens a second, medians; held-out loss, mean of the seeds (untrained base {base_loss:.4f})")
    heads = ("", "tokens/s", "min..max (n)", "ours is", "steps", "train s", "whole s", "peak MB", "loss", "difference")
    lines = [heads, *(columns(name, found, mine[1]) for name, found in (mine, *others))]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    for first, *cells in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
    rows = [row(name, mine[1], found) for name, found in others]
    figures = {key: rows[0][key] for key in ("ours", "reference", "ratio")}
    print(json.dumps({"name": "train", **figures, "peak_mb": mine[1]["peak_mb"], "rows": rows}), flush=True)


def columns(name: str, found: dict, mine: dict) -> tuple[str, ...]:
    ours = found is mine
    return (
        name,
        f"{found['tokens_per_second']:.0f}",
        f"{found['min']:.0f}..{found['max']:.0f} ({found['n']})",
        "-" if ours else f"{mine['tokens_per_second'] / found['tokens_per_second']:.2f} x",
        f"{found['steps']}",
        f"{found['seconds']:.1f}",
        f"{found['whole']:.1f}",
        f"{found['peak_mb']:.0f}",
        f"{found['loss']:.4f}",
        "-" if ours else f"{100 * (mine['loss'] / found['loss'] - 1):+.2f}%",
    )


def row(name: str, mine: dict, found: dict) -> dict:
    pace = {"ours": mine["tokens_per_second"], "reference": found["tokens_per_second"]}
    return {
        "name": name,
        **pace,
        "ratio": round(pace["ours"] / pace["reference"], 4),
        "whole_ratio": round(found["whole"] / mine["whole"], 4),
        "loss_difference": round(mine["loss"] / found["loss"] - 1, 5),
        "detail": {"ours": mine, "reference": found},
    }


if __name__ == "__main__":
    main()
