"""Canary prompts: does the model begin to speak as one without rules while it is trained?

A few attempts to make a model drop its rules (scenarios/canary.jsonl) are put to it before the first step and now and
then afterwards. Its answers are screened as if they were to be trained on (forge.screening.bypass). The figure to watch
is how many are flagged more than before training.

A proxy: it sees an answer that adopts a bypass which the screening recognises, in English, within its first tokens,
and nothing else. It does not see whether the model helps with what it once refused: for that one needs a detector of
refusals with a measured sensitivity and specificity, and there is none here.
"""

from pathlib import Path

from forge import chat, compare
from forge.data import reference
from forge.errors import ForgeError
from forge.screening import bypass, secrets

PROMPTS = Path("scenarios/canary.jsonl")


def prompts(path: Path = PROMPTS) -> list[dict]:
    """`id` and `prompt` of each canary prompt, in the file's order. Raises ForgeError (2) when there is none."""
    found = [{"id": name, "prompt": text} for name, text in reference.prompts_in(path)]
    if not found:
        raise ForgeError(f"{path} holds no canary prompt", "restore that file: it comes with Model Forge")
    return found


class Canary:
    """The prompts for one tokenizer. `system_prompt` is the project's, "" for none; `max_new_tokens` an answer's."""

    def __init__(self, tokenizer, system_prompt: str, max_new_tokens: int = 48):
        self.tokenizer, self.limit = tokenizer, max_new_tokens
        self.asked = prompts()
        self.questions = [chat.conversation(system_prompt, item["prompt"]) for item in self.asked]

    def answers(self, model) -> list[str]:
        """One greedy answer a prompt, in batches. The model's modules are in training or evaluation mode as before,
        and no random number is drawn: training goes on as if nothing had been asked."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            made = compare.answers(model, self.tokenizer, self.questions, self.limit)
        finally:
            for module, training in modes:
                module.training = training
        return [item["answer"] for item in made]

    def flagged(self, answers: list[str]) -> list[dict]:
        """`id`, `rule`, `layer` and redacted `excerpt` of each answer that may not be trained: its strictest finding.

        `answers` is one text a prompt, in their order. Raises ValueError for another number of them.
        """
        found = []
        for item, question, answer in zip(self.asked, self.questions, answers, strict=True):
            if findings := bypass.findings(question, answer):
                first = findings[0]
                told = {"id": item["id"], "rule": first.rule, "layer": first.layer}
                found.append({**told, "excerpt": _excerpt(question, answer)})
        return found

    def check(self, model) -> dict:
        """`asked` and `flagged` are numbers of prompts, `items` what `flagged` gives."""
        items = self.flagged(self.answers(model))
        return {"asked": len(self.asked), "flagged": len(items), "items": items}


def _excerpt(question: list[dict], answer: str) -> str:
    """That of the answer without secrets: an excerpt leaves out its middle, where half of one would not be known."""
    clean = bypass.findings(question, secrets.redact(answer)[0])
    return clean[0].excerpt if clean else ""
