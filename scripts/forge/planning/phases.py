"""A config's phases with what each needs, beside what is there, and what is to be done where that does not suffice."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from forge import capacity, compare, disk, graph, manifest, models
from forge.config import Config
from forge.environment import resources
from forge.errors import ENVIRONMENT, ForgeError
from forge.planning import needs, remedy, source, times
from forge.planning.batch import Batch
from forge.training.choices import Choices, fitting
from forge.weights.hollow import Weights

PROMPT = 64  # tokens of a question that is not known
PAIRS, PAIR_TOKENS = 208, 440  # of a target of scenarios/evaluation/; a question with its three answers
PROMPTS, ANSWERED = 3, 48  # sets of prompts that make evaluate asks, and what it asks of each at most


@dataclass(frozen=True)
class Row:
    """One phase: `disk` bytes that it writes, `seconds` it took (`recorded`) or is about to take; None: not known."""

    phase: str
    need: needs.Need
    disk: int
    seconds: float | None
    recorded: bool


@dataclass(frozen=True)
class Plan:
    base: source.Base
    machine: capacity.Machine
    choices: Choices
    batches: list[Batch]
    weights: Weights
    adapter: int
    rows: list[Row]
    failures: list[ForgeError]


class Planner:
    """Everything that the phases' needs follow from."""

    def __init__(self, configuration: Config, base: source.Base, estimator, there: capacity.Machine):
        self.config, self.values, self.layout = configuration, configuration.values, configuration.layout
        self.base, self.estimator, self.there = base, estimator, there
        self.settings = configuration.view("train")
        self.free = there.memory if there.card is None else there.card
        self.choices = fitting(self.settings, estimator, self.free)
        self.needed = estimator.train(self.settings, self.choices)
        known = self.layout.build / "rates.json"
        self.rates = capacity.rates(self.choices.device, self.choices.dtype, known)
        self.on_cpu = capacity.rates("cpu", "float32", known)

    def plan(self) -> Plan:
        disks = self.disks()
        rows = [Row(row.name, self.need(row.name), disks.get(row.name, 0), *self.seconds(row)) for row in graph.PHASES]
        weights, adapter = self.estimator.weights, self.estimator.adapter(self.settings["lora"])
        failures = [*self.memory_failures(rows), *self.disk_failures()]
        batches = self.estimator.batches(self.settings)
        return Plan(self.base, self.there, self.choices, batches, weights, adapter, rows, failures)

    # -- memory ---------------------------------------------------------------------------------------------

    def need(self, name: str) -> needs.Need:
        found, tokenizer = self.estimator, self.base.tokenizer
        weights, dtype, vocabulary = found.weights, self.values.model.dtype, found.text.vocab_size
        lora, base = self.settings["lora"], self.values.merge.base
        adapter, tokens = found.adapter(lora), self.held_out_tokens()
        if name == "train":
            return self.needed
        if name == "verify-adapter":
            compute = self.measured_in()
            cache = self.cache(compute, max(1, self.values.evaluation.questions))
            return needs.verify_adapter(weights, adapter, tokenizer, compute, cache, tokens, vocabulary)
        if name == "evaluate":
            compute = self.measured_in()
            return needs.evaluate(weights, adapter, tokenizer, compute, self.cache(compute, compare.ANSWERS_AT_ONCE))
        if name == "merge":
            return needs.merge(weights, adapter, tokenizer, dtype, lora, base, tokens, vocabulary)
        if name == "verify-merged":
            return needs.verify_merged(weights, adapter, tokenizer, dtype, tokens, vocabulary)
        if name == "gguf":
            return needs.gguf(weights, adapter, tokenizer, lora, base)
        if name == "verify-gguf":
            return needs.verify_gguf(weights, tokenizer, dtype, self.gguf_size(), tokens, vocabulary)
        return needs.small(tokenizer)

    def held_out_tokens(self) -> int:
        """Tokens of the rows that are scored: evaluation.heldout_rows of the usual length, or of the longest possible.

        Half of them carry loss, and no more rows are taken once their scores fill compare.SCORE_BYTES.
        """
        usual = self.estimator.statistics.get("tokens", {}).get("median") or self.estimator.limit
        most = 2 * compare.SCORE_BYTES // (4 * self.estimator.text.vocab_size) + usual
        return min(self.values.evaluation.heldout_rows * usual, most)

    def measured_in(self) -> str:
        """What verify-adapter and evaluate compute in."""
        if self.there.card is not None:
            return models.compute_dtype("auto")
        size = self.estimator.weights.total * needs.BYTES[self.values.model.dtype]
        return models.on_processor(size, self.there.memory)

    def cache(self, dtype: str, asked: int) -> int:
        """Bytes of keys and values of the answers that are written at once, of so many that are asked for."""
        text, limit, width = self.estimator.text, self.values.evaluation.max_new_tokens, needs.BYTES[dtype]
        together = min(asked, compare.at_once(text, width, PROMPT + limit))
        return compare.cache_bytes(text, width, together * (PROMPT + limit))

    def memory_failures(self, rows: list[Row]) -> list[ForgeError]:
        found = []
        for row in rows:
            if row.phase == "train" and row.need.peak > self.free:
                found.append(self.training_failure(row.need))
            elif row.phase != "train" and row.need.memory > self.there.memory:
                found.append(
                    ForgeError(
                        f"{row.phase} needs {gb(row.need.memory)} of memory, {gb(self.there.memory)} are free",
                        more_memory(self.there, row.need.memory),
                        ENVIRONMENT,
                    )
                )
        return found

    def training_failure(self, need: needs.Need) -> ForgeError:
        gpu = bool(need.card)
        kind = "GPU memory" if gpu else "memory"
        cause = f"training needs {gb(need.peak)} of {kind}, {gb(self.free)} are free"
        change = remedy.search(self.values.model_dump(mode="json"), gpu, self.peak_of, self.free)
        if change:
            return ForgeError(cause, f"{remedy.words(change[0])} ({gb(change[1])})", ENVIRONMENT)
        smaller = "choose a smaller base (model.base_model_name): no setting makes this one fit"
        more = smaller if gpu else f"{smaller}; or {more_memory(self.there, need.memory)}"
        return ForgeError(cause, more, ENVIRONMENT)

    def peak_of(self, values: dict) -> int:
        """Bytes of training with other values of the config: what `auto` then chooses."""
        settings = {name: values[name] for name in ("quantization", "lora", "training")}
        estimator = self.estimator.with_limit(min(values["data"]["max_tokens"], values["training"]["max_length"]))
        chosen = fitting(settings, estimator, self.free)
        return estimator.train(settings, chosen).peak

    # -- disk -----------------------------------------------------------------------------------------------

    def items(self) -> list[disk.Item]:
        shapes = self.estimator.shapes
        return disk.items(self.layout, shapes, self.values.model.dtype, self.values, self.base.tokenizer)

    def disks(self) -> dict[str, int]:
        return {"model": self.base.download, **disk.total(self.items())}

    def gguf_size(self) -> int:
        return max(disk.gguf_bytes(self.estimator.shapes, name) for name in self.values.gguf.quantizations)

    def disk_failures(self) -> list[ForgeError]:
        wanted = {capacity.existing(folder): size for folder, size in disk.most(self.items()).items()}
        cache = capacity.existing(capacity.hub_cache())
        same = next((folder for folder in wanted if folder.stat().st_dev == cache.stat().st_dev), cache)
        wanted[same] = wanted.get(same, 0) + self.base.download
        found = []
        for folder, size in wanted.items():
            free = shutil.disk_usage(folder).free
            if size * 1.02 > free:
                found.append(
                    ForgeError(
                        f"the phases need {gb(size * 1.02)} of disk in {shown(folder)}, {gb(free)} are free",
                        f"free {gb(size * 1.02 - free)} (scripts/runs.py --prune, make clean-models), or make models/ "
                        "a link to a folder on a larger disk",
                        ENVIRONMENT,
                    )
                )
        return found

    # -- time -----------------------------------------------------------------------------------------------

    def seconds(self, row: graph.Phase) -> tuple[float | None, bool]:
        """Seconds and whether they were recorded when the phase was done last, on this base."""
        content = manifest.read(row.record(self.layout))
        if content and "seconds" in content and (row.name == "model" or self.base_of(content) == self.base_here):
            return content["seconds"], True
        about = self.about(row.name)
        return (None if about is None else about + times.LOADED), False

    @cached_property
    def base_here(self) -> str | None:
        """Digest of this config's base; None where it is not here."""
        content = manifest.read(graph.BY_NAME["model"].record(self.layout))
        return manifest.digest(content) if content else None

    def base_of(self, content: dict) -> str:
        """Digest of the base that a record's phase was done with."""
        return next((item["sha256"] for item in content["inputs"] if item["name"] == "model"), "")

    def about(self, name: str) -> float | None:
        """Seconds from work and rates; None for what no weight is computed with. Verification of what ships runs on
        the CPU, whatever trained it."""
        weights, rates, evaluation = self.estimator.weights, self.rates, self.values.evaluation
        size = weights.total * needs.BYTES[self.values.model.dtype]
        scored, answers = self.held_out_tokens(), evaluation.questions * evaluation.max_new_tokens
        if name == "train":
            return self.training_seconds()
        if name == "verify-adapter":
            return times.score(weights, 2 * scored, rates) + times.answer(weights, 2 * answers, rates)
        if name == "evaluate":
            scored = 2 * min(evaluation.pairs, PAIRS) * PAIR_TOKENS
            asked = 2 * PROMPTS * min(evaluation.answers, ANSWERED) * evaluation.max_new_tokens
            return times.score(weights, scored, rates) + times.answer(weights, asked, rates)
        if name == "merge":
            return times.merge(size if self.values.merge.keep else 0, rates)
        if name == "verify-merged":
            return times.score(weights, 3 * scored, self.on_cpu) + size / rates.hashing
        if name == "gguf":
            return times.gguf(size, len(self.values.gguf.quantizations), capacity.cores(), rates)
        if name == "verify-gguf":
            return times.score(weights, 2 * scored, self.on_cpu) + times.answer(weights, answers, self.on_cpu)
        return None

    def training_seconds(self) -> float | None:
        """Seconds of all stages; None while the rows are not known."""
        tokens = self.estimator.tokens(self.settings)
        if None in tokens.values():
            return None
        statistics, training = self.estimator.statistics, self.settings["training"]
        rounds = self.estimator.steps(self.settings) / training["gradient_accumulation_steps"] / training["eval_steps"]
        rows = statistics["rows"]
        evaluated = rounds * rows.get("validation", 0) * tokens["sft"] / max(1, rows["train"])
        trained = tokens["sft"] * training["num_train_epochs"]
        preferred = sum(count for stage, count in tokens.items() if stage != "sft")
        preferred *= training["preference"]["num_train_epochs"]
        evaluated += preferred  # once more without the adapter, to compare with
        adapter, again = self.estimator.adapter(self.settings["lora"]), self.choices.gradient_checkpointing
        return times.train(self.estimator.weights, adapter, trained + preferred, again, evaluated, self.rates)


def more_memory(there: capacity.Machine, needed: int) -> str:
    """How to get what is missing, with the value that suffices."""
    if there.capped == capacity.CONTAINER:
        return f"raise the container's memory limit by {gb(needed - there.memory)}"
    missing = -(-(needed - there.memory) // 10**9)
    if there.capped == capacity.WSL:
        return resources.wslconfig(there.ram / 1e9, missing)
    return resources.SWAP.replace("-l 16G", f"-l {missing}G")


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def shown(folder: Path) -> str:
    return "this folder" if folder.resolve() == Path().resolve() else str(folder)
