"""The stop to a training that wears off the base's safety: canary prompts, now and then, beside the untrained base."""

import json
from pathlib import Path

from transformers import TrainerCallback

from forge import files, phase
from forge.errors import GATE_NOT_PASSED, ForgeError
from forge.training import ranks
from forge.training.canary import Canary


class Guard(TrainerCallback):
    """Asks the canary prompts every `every` steps, the base (the adapter switched off) first.

    `known`: the file where the base's figure is kept for the other stages and for a run that goes on. `checks`: what
    was seen, one entry a check. Raises ForgeError (3) as soon as more answers are flagged than of the
    base; the checkpoint before it is kept.
    """

    def __init__(self, run: phase.Run, tokenizer, stage: str, every: int, known: Path):
        self.run, self.stage, self.every, self.known = run, stage, every, known
        self.canary = Canary(tokenizer, run.settings["project"]["system_prompt"])
        self.checks: list[dict] = []
        self.base: int | None = None

    def on_train_begin(self, args, state, control, model=None, **_: object) -> None:
        self.base = ranks.on_main(self.remembered)
        if self.base is None:
            with model.disable_adapter():
                self.base = self.check(model)["flagged"]
            ranks.on_main(files.write_json, self.known, self.base)
        self.run.say(f"  canary prompts: {self.base} of {len(self.canary.asked)} answers of the base are flagged")

    def remembered(self) -> int | None:
        return json.loads(self.known.read_text(encoding="utf-8")) if self.known.is_file() else None

    def on_step_end(self, args, state, control, model=None, **_: object) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        found = self.check(model)
        self.checks.append({"stage": self.stage, "step": state.global_step, "flagged": found["flagged"]})
        if found["flagged"] <= self.base:
            return
        first = found["items"][0]
        raise ForgeError(
            f"training was stopped at step {state.global_step} of {self.stage}: {found['flagged']} of {found['asked']} "
            f"answers to canary prompts speak as a model without rules does, {self.base} of the base; the first: "
            f"{first['id']}: {first['excerpt']}",
            "look for such rows in the data, raise data.safety_share, or lower the learning rate; the last checkpoint "
            "is kept",
            GATE_NOT_PASSED,
        )

    def check(self, model) -> dict:
        """All processes ask, for the weights may lie in shards; the main one's answers count."""
        return ranks.from_main(self.canary.check(model))

    def facts(self) -> dict:
        """What stands in the adapter's record."""
        return {"asked": len(self.canary.asked), "flagged_of_base": self.base, "checks": self.checks}
