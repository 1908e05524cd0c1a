"""A stage of training, from its rows to a finished adapter: resumed where it was cut, halved where memory ends.

Stages lie in models/checkpoints/<name>/<digest>/<stage>/: checkpoint-<step>/ while it works, finished/ afterwards.
Each begins from the base on disk and the adapter of the stage before, so that a run that is cut between two stages
goes on as one that was not. Several processes (forge.training.ranks) go through all of it in step; the main one alone
writes, checkpoints' own parts excepted.
"""

import json
import time
from pathlib import Path

from forge import files, models, phase
from forge.errors import ENVIRONMENT, INTERRUPTED, ForgeError, out_of_memory
from forge.training import base, batches, checkpoints, follow, guard, preference, ranks, supervised
from forge.training.choices import Choices

FINISHED = "finished"
KEPT = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "rewards/margins", "rewards/accuracies")


def run_all(run: phase.Run, tokenizer, choices: Choices) -> tuple[Path, list[dict]]:
    """Folder of the last stage's adapter, and the facts of each stage.

    Raises ForgeError (2) for rows that do not fit or are too few, or that the processes cannot share.
    """
    place = checkpoints.folder(run)
    listed = run.settings["training"]["stages"]
    # All rows are read before the first step: a stage that has none is refused at once, not after hours.
    kinds = [kind_of(run, tokenizer, name) for name in listed]
    for name, kind in zip(listed, kinds, strict=True):
        share(name, kind)
    adapter, facts = None, []
    for name, kind in zip(listed, kinds, strict=True):
        stage = Stage(run, tokenizer, choices, name, kind, place / name, adapter)
        if ranks.on_main(is_finished, stage.finished):
            run.say(f"stage {name} is finished already")
        else:
            stage.work()
        adapter = stage.finished
        facts.append(json.loads((adapter / "stage.json").read_text(encoding="utf-8")))
    return adapter, facts


def kind_of(run: phase.Run, tokenizer, name: str):
    if name == "sft":
        return supervised.Supervised(run, tokenizer)
    return preference.Preference(run, tokenizer, name)


def share(name: str, kind) -> None:
    """Rows at once and batches a step are each process's own from here on; the rows of a step stay as many.

    Raises ForgeError (2) where they cannot: another number of rows a step would be another training.
    """
    shared = batches.shared(kind.rows_at_once, kind.accumulation, ranks.world())
    least = 2 if name == "kto" else 1  # kto compares the rows of a batch
    if shared is None or (ranks.world() > 1 and shared[0] < least):
        section = "training" if name == "sft" else "training.preference"
        raise ForgeError(
            f"{kind.rows_at_once} x {kind.accumulation} rows a step of {name} cannot be shared by {ranks.world()} "
            f"processes{f' with {least} at once' if least > 1 else ''}",
            f"make {section}.per_device_train_batch_size x gradient_accumulation_steps a multiple of "
            f"{least * ranks.world()}",
        )
    kind.rows_at_once, kind.accumulation = shared


def is_finished(folder: Path) -> bool:
    """Whether a stage ended with this folder; a damaged one is removed."""
    if checkpoints.is_sound(folder):
        return True
    files.remove(folder)
    return False


class Smaller(ForgeError):
    """Memory ran out in one of several processes: the others wait for it inside a step, so all begin anew."""

    again = True


class Stage:
    def __init__(self, run, tokenizer, choices, name: str, kind, place: Path, adapter: Path | None):
        self.run, self.tokenizer, self.choices = run, tokenizer, choices
        self.name, self.kind, self.place, self.adapter = name, kind, place, adapter
        self.finished = place / FINISHED

    def work(self) -> None:
        """Train to the end.

        Raises ForgeError (75) when somebody asked to stop, or one of several processes has too little memory for its
        rows; (7) when memory is too small for one.
        """
        rows_at_once, accumulation = ranks.on_main(self.remembered)
        while True:
            try:
                self.attempt(rows_at_once, accumulation)
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                rows_at_once, accumulation = self.smaller(rows_at_once, accumulation)
            release()
            self.run.say(
                f"out of memory: {self.name} goes on with {rows_at_once} rows at once and {accumulation} batches a step"
            )

    @property
    def memory(self) -> Path:
        """Where several processes find what fits: they cannot tell each other once one of them has no memory."""
        return self.place / f"rows-{ranks.world()}.json"

    def remembered(self) -> tuple[int, int]:
        if ranks.launched() and self.memory.is_file():
            return tuple(json.loads(self.memory.read_text(encoding="utf-8")))
        return self.kind.rows_at_once, self.kind.accumulation

    def smaller(self, rows_at_once: int, accumulation: int) -> tuple[int, int]:
        """Fewer rows at once. Raises ForgeError (7) when there is one already, Smaller (75) among several processes."""
        fitting = halved(rows_at_once, accumulation)
        if fitting is None or (self.name == "kto" and fitting[0] < 2):
            raise ForgeError(
                f"memory does not suffice for {'one row' if rows_at_once == 1 else f'{rows_at_once} rows'} at once",
                "lower training.max_length and data.max_tokens, lora.r, or take a smaller base",
                ENVIRONMENT,
            )
        if ranks.launched():
            files.write_json(self.memory, fitting)
            raise Smaller(
                f"out of memory with {rows_at_once} rows at once: {self.name} goes on with {fitting[0]} on each of "
                f"{ranks.world()} processes",
                "run the same command again",
                INTERRUPTED,
            )
        return fitting

    def attempt(self, rows_at_once: int, accumulation: int) -> None:
        began = time.monotonic()
        release()  # what the stage before held
        model = self.model()
        trainer = self.kind.trainer(model, self.choices, self.place, rows_at_once, accumulation)
        base.in_fp32(trainer.model)
        self.describe(trainer)
        stop = follow.watch(self.run, trainer, self.name)
        watchman = self.watchman(trainer)
        resume = ranks.on_main(checkpoints.latest, self.place, self.run.say)
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if ranks.any_of(stop.asked):
            raise ForgeError(
                "interrupted; a checkpoint is saved", "run the same command again: it goes on", INTERRUPTED
            )
        weights = whole(trainer.model) if self.choices.sharded else None
        more = {
            "seconds": round(result.metrics["train_runtime"], 3),
            "step_seconds": round(stop.worked, 3),
            "canary": watchman.facts() if watchman else None,
        }
        ranks.on_main(self.finish, trainer, weights, result.training_loss, time.monotonic() - began, more)

    def model(self):
        settings = self.run.settings
        loaded = base.load(self.run.layout.base, settings["quantization"], self.choices)
        if self.adapter is None:
            return base.new_adapter(loaded, settings["lora"], settings["project"]["seed"])
        return base.old_adapter(loaded, self.adapter)

    def watchman(self, trainer) -> guard.Guard | None:
        every = self.run.settings["training"]["canary_steps"]
        if not every:
            return None
        found = guard.Guard(self.run, self.tokenizer, self.name, every, self.place.parent / "canary.json")
        trainer.add_callback(found)
        return found

    def describe(self, trainer) -> None:
        """What was resolved, before the work starts."""
        trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        self.run.say(f"stage {self.name}: {self.kind.describe()}; {trained / 1e6:.1f} M adapter weights")

    def finish(self, trainer, weights: dict | None, loss: float, seconds: float, more: dict) -> None:
        """The adapter, its curves and its figures, complete or not there at all. `weights`: where the model has parts.

        `more` figures: `seconds` of train(), validation, checkpoints and canary prompts included, and `step_seconds`
        of the steps alone; of a resumed run both since it went on.
        """
        staging = files.staging_path(self.finished)
        files.remove(staging)
        trainer.model.save_pretrained(str(staging), selected_adapters=["default"], state_dict=weights)
        history = [{key: entry[key] for key in KEPT if key in entry} for entry in trainer.state.log_history]
        curves = [{"stage": self.name, **entry} for entry in history if {"loss", "eval_loss"} & set(entry)]
        files.write_jsonl(staging / "metrics.jsonl", curves)
        found = {
            "name": self.name,
            "steps": trainer.state.global_step,
            "rows": {split: len(rows) for split, rows in self.kind.rows.items()},
            "tokens": trainer.state.num_input_tokens_seen,
            "loss": round(loss, 6),
            **last_validation(trainer),
            **more,
        }
        files.write_json(staging / "stage.json", found)
        checkpoints.seal(staging)
        staging.rename(self.finished)
        told = f", validation loss {found['validation_loss']:.4f}" if "validation_loss" in found else ""
        self.run.say(f"stage {self.name}: training loss {loss:.4f}{told}, {seconds:.0f} s")


def whole(model) -> dict:
    """The adapter's weights by name, put together from all processes' parts, on the CPU. All must call it."""
    return {
        name: parameter.detach().full_tensor().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def last_validation(trainer) -> dict:
    """`validation_loss` of the adapter that is kept, at `kept_step`; nothing where no row was held out."""
    state = trainer.state
    measured = [entry for entry in state.log_history if "eval_loss" in entry]
    if not measured:
        return {}
    best = trainer.args.load_best_model_at_end
    entry = min(measured, key=lambda entry: entry["eval_loss"]) if best else measured[-1]
    found = {"validation_loss": entry["eval_loss"], "kept_step": entry["step"]}
    if "eval_rewards/accuracies" in entry:
        found["preferred_rightly"] = entry["eval_rewards/accuracies"]
    return found


def halved(rows_at_once: int, accumulation: int) -> tuple[int, int] | None:
    """At most half as many rows at once, as many a step as before; None when it is one already."""
    total = rows_at_once * accumulation
    fitting = [rows for rows in range(rows_at_once // 2, 0, -1) if total % rows == 0]
    return (fitting[0], total // fitting[0]) if fitting else None


def release() -> None:
    import torch

    models.give_memory_back()
    if models.device() != "cpu":
        torch.cuda.empty_cache()
