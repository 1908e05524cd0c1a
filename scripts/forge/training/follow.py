"""What watches a stage while it trains: progress, complete checkpoints, a stop that saves, an end to a bad loss."""

import contextlib
import math
import signal
import time
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from forge import models, phase
from forge.errors import ForgeError
from forge.training import batches, checkpoints, ranks

EXPLODED = 3  # times the first loss, and 1 more: from there no run of ours came back


class Follow(TrainerCallback):
    """`asked`: whether somebody asked a process to stop; the checkpoint of that step is saved, and all stop there.
    `worked`: seconds of all steps."""

    def __init__(self, run: phase.Run, stage: str):
        self.run, self.stage = run, stage
        self.asked = False
        self.began = self.worked = 0.0
        self.last: tuple[float, int, int] | None = None  # time, step and tokens at the last line of progress

    def ask(self, *_: object) -> None:
        if not self.asked:
            self.asked = True
            with contextlib.suppress(RuntimeError):  # it may come while a line is printed
                self.run.say("stopping after this step; a checkpoint will be saved")

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_: object) -> None:
        batches.set_epoch(train_dataloader, math.floor(state.epoch + 1e-6))  # it is a sum of steps' shares

    def on_step_begin(self, args, state, control, **_: object) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_: object) -> None:
        self.worked += time.monotonic() - self.began
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"  # before it is saved, so that it can be the best
        if ranks.any_of(self.asked):
            control.should_save = control.should_training_stop = True

    def on_train_begin(self, args, state, control, **_: object) -> None:
        models.give_memory_back()  # of the reference's log-probabilities

    def on_evaluate(self, args, state, control, **_: object) -> None:
        models.give_memory_back()

    def on_save(self, args, state, control, model=None, **_: object) -> None:
        """A checkpoint counts once it is sealed, when every process has written its part; one with NaN never is."""
        broken = not_finite(model)
        if ranks.any_of(broken is not None):
            raise self.bad_loss(f"{broken or 'a weight'} holds NaN or infinity", state.global_step)
        ranks.on_main(checkpoints.seal, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_log(self, args, state, control, logs: dict | None = None, **_: object) -> None:
        kind = next((name for name in ("loss", "eval_loss") if name in (logs or {})), None)
        if kind is None:
            return
        loss = logs[kind]
        self.require_sane(kind, loss, state)
        accuracy = logs.get("eval_rewards/accuracies" if kind == "eval_loss" else "rewards/accuracies")
        told = "" if accuracy is None else f", {100 * accuracy:.0f}% of pairs preferred rightly"
        named = "loss" if kind == "loss" else "validation loss"
        self.run.say(
            f"  {self.stage} step {state.global_step}/{state.max_steps}: {named} {loss:.4f}{told}{self.pace(state)}"
        )

    def require_sane(self, kind: str, loss: float, state) -> None:
        if not math.isfinite(loss):
            raise self.bad_loss(f"the loss became {loss}", state.global_step)
        first = next((entry["loss"] for entry in state.log_history if "loss" in entry), loss)
        if kind == "loss" and loss > EXPLODED * first + 1:
            raise self.bad_loss(f"the loss rose from {first:.2f} to {loss:.2f}", state.global_step)

    def bad_loss(self, cause: str, step: int) -> ForgeError:
        key = "training.learning_rate" if self.stage == "sft" else "training.preference.learning_rate"
        return ForgeError(
            f"{cause} at step {step} of {self.stage}",
            f"lower {key}, or look for broken rows; the last good checkpoint is kept",
        )

    def pace(self, state) -> str:
        """Tokens a second since the last line, padding not counted, and the time that is left at this pace."""
        now = (time.monotonic(), state.global_step, state.num_input_tokens_seen)
        before, self.last = self.last, now
        if before is None or now[1] == before[1]:
            return ""
        seconds = now[0] - before[0]
        left = seconds / (now[1] - before[1]) * (state.max_steps - now[1])
        return f", {(now[2] - before[2]) / seconds:.0f} tokens/s, {left:.0f} s left"


def not_finite(model) -> str | None:
    """Name of a trained weight with NaN or infinity; of a weight in shards, this process's part is looked at."""
    import torch

    for name, parameter in model.named_parameters():
        part = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if parameter.requires_grad and not torch.isfinite(part).all():
            return name
    return None


def watch(run: phase.Run, trainer, stage: str) -> Follow:
    """Put a Follow on a trainer; Ctrl-C and SIGTERM ask it to stop."""
    callback = Follow(run, stage)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    signal.signal(signal.SIGTERM, callback.ask)
    signal.signal(signal.SIGINT, callback.ask)
    return callback
