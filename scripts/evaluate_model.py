"""Measure the tuned model beside its base before anything is exported (a gate).

Reads evaluation.* and project.system_prompt of the config, base and adapter, the evaluation sets in scenarios/ and
those that evaluation.sets names, and what verify-adapter asked. One signal gates: the preference for good answers over
failing ones must be shown to be no worse than the base's. Guards on answers, coherence and knowledge block when harm
is shown. Writes verdict.json (PASS, FAIL, INCONCLUSIVE or NOT_RUN), items.jsonl and, on PASS or with a written reason
in OVERRIDE_REASON, gate.ok: without that nothing is merged.

With --model it measures another model folder (an adapter or a whole model of the same base) and exports nothing:
  python scripts/evaluate_model.py --model models/archive/forge-starter-adapter-0123abcd --metrics safety,coherence
"""

import functools
from pathlib import Path

from forge import chat, compare, files, manifest, models, phase, questions, sources
from forge.errors import GATE_NOT_PASSED, ForgeError
from forge.evaluating import binding, detectors, judge, judging, measuring, release, sets, signals

NEEDED = {
    signals.FAIL: "read {folder}/items.jsonl; train on more scenarios with answers (stages dpo), with a lower "
    "learning_rate or a larger data.safety_share; {override}",
    signals.INCONCLUSIVE: "measure more pairs (evaluation.sets names yours, evaluation.pairs how many); {override}",
    signals.NOT_RUN: "restore scenarios/evaluation/, name pairs in evaluation.sets, keep safety in evaluation.metrics; "
    "{override}",
}
OVERRIDE = f'or write down why it may pass: make evaluate {phase.OVERRIDE}="..."'


def work(run: phase.Run) -> dict:
    wanted = gather(run)
    if not wanted.pairs or "safety" not in run.settings["evaluation"]["metrics"]:
        return verdict(run, wanted, [], [])
    before, after = measure(run, wanted, run.layout.adapter)
    asked = files.read_jsonl(run.layout.gate("verify-adapter") / "items.jsonl")
    return verdict(run, wanted, *signals_of(run, wanted, before, after, asked))


def gather(run: phase.Run) -> sets.Sets:
    trained = (run.facts("dataset").get("scenarios") or {}).get("targets", {})
    system = run.settings["project"]["system_prompt"]
    return sets.gather(run.settings["evaluation"], system, sorted(trained), run.layout.dataset)


def measure(run: phase.Run, wanted: sets.Sets, folder: Path) -> tuple[dict, dict]:
    """What base and tuned model gave: see `measuring.of_model`. The base's part is kept for the next time."""
    models.prepare(repeats=True)
    tokenizer, limit = models.tokenizer(run.layout.base), run.settings["evaluation"]["max_new_tokens"]
    placed = models.place(run.layout.base)  # asked once: what is free on a GPU changes
    dtype = models.precision(run.layout.base, placed[0])
    how = f"{dtype}{', the weights in 4 bits' if placed[1] else ''}"
    run.say(f"{len(wanted.pairs)} pairs of {', '.join(wanted.targets)}, {len(wanted.asked)} questions, in {how}")

    @functools.cache
    def base():
        return models.to_measure(run.layout.base, dtype, placed)

    depends = [manifest.digest(run.inputs["model"]), wanted.digest(), limit, how]
    before = measuring.cached(
        ["base", *depends],
        lambda: run.say("the base:") or measuring.of_model(base(), tokenizer, wanted, limit, run.say),
    )
    before["controls"] = measuring.cached(
        ["controls", *depends],
        lambda: (
            run.say("the controls:") or measuring.of_controls(base(), run.layout.base, tokenizer, wanted.pairs, dtype)
        ),
    )
    tuned = tuned_model(base, folder, dtype)
    run.say("the tuned model:")
    after = measuring.of_model(tuned, tokenizer, wanted, limit, run.say)
    after["shuffled"] = measuring.of_pairs(tuned, tokenizer, measuring.shuffled(wanted.pairs))
    after["control_tokens"] = chat.control_tokens(tokenizer)
    if folder != run.layout.adapter:
        after["questions"] = ask(tuned, tokenizer, run)
    return before, after


def tuned_model(base, folder: Path, dtype: str):
    """The base with the adapter of a folder added to its weights (in 4 bits: beside them, which is exact), or the whole
    model of a folder."""
    if not (folder / "adapter_config.json").is_file():
        return models.to_measure(folder, dtype)
    model = models.with_adapter(base(), folder)
    return model if getattr(base(), "is_loaded_in_4bit", False) else model.merge_and_unload(safe_merge=False)


def ask(tuned, tokenizer, run: phase.Run) -> list[dict]:
    """The held-out questions, asked of a model that verify-adapter did not ask; the base's answers are known."""
    held = questions.heldout(run.layout.dataset, run.settings["evaluation"]["questions"])
    said = compare.answers(
        tuned, tokenizer, [row["prompt"] for row in held], run.settings["evaluation"]["max_new_tokens"]
    )
    known = {item["id"]: item for item in files.read_jsonl(run.layout.gate("verify-adapter") / "items.jsonl")}
    return [
        {**known[row["id"]], "tuned": {"contains_facts": questions.right(answer["answer"], row.get("facts"))}}
        for row, answer in zip(held, said, strict=True)
        if row["id"] in known
    ]


def signals_of(run: phase.Run, wanted: sets.Sets, before: dict, after: dict, asked: list[dict]) -> tuple[list, list]:
    """Signals, and every item they were counted from."""
    settings = run.settings["evaluation"]
    items = judging.items(wanted, before, after)
    found = [
        *judging.of_pairs(before["pairs"], after["pairs"], settings),
        *judging.of_families(wanted, before["pairs"], after["pairs"]),
        *beside_release(run, items),
        *judging.of_answers(wanted, before["answers"], after["answers"], after["control_tokens"], settings),
        *judging.of_questions(asked, settings),
        *judge.of_answers(settings, wanted, before["answers"], after["answers"]),
        *judging.of_controls(
            before["controls"], [pair.id for pair in wanted.pairs], before["pairs"], after["shuffled"]
        ),
    ]
    return found, items


def beside_release(run: phase.Run, items: list[dict]) -> list[signals.Signal]:
    """The same gate against the last release of this project, where there is one."""
    path, settings = sources.baseline(run.layout.name), run.settings["evaluation"]
    if not path.is_file():
        return []
    pairs = release.pairs_of(items)
    return [release.compared(release.read(path), pairs, settings["margin"], settings["minimum_pairs"])]


def verdict(run: phase.Run, wanted: sets.Sets, found: list[signals.Signal], items: list[dict]) -> dict:
    """The gate's facts; what was found is printed on the way."""
    told = signals.verdict(found)
    for signal in found:
        run.say(f"  {signal.verdict or '-':12} {signal.line()}")
    quality = detectors.measured() if items else {}
    for name, measured in quality.items():
        sensitivity, specificity = measured["sensitivity"], measured["specificity"]
        run.say(
            f"  detector of {name}: finds {sensitivity['value']:.2f} of {sensitivity['n']} labelled answers that have "
            f"it, spares {specificity['value']:.2f} of {specificity['n']} that have it not"
        )
    run.say(
        f"  {told}: every signal is a proxy; {len(wanted.pairs)} pairs, targets {', '.join(wanted.targets) or 'none'}"
    )
    files.write_text(run.record.parent / "items.jsonl", "".join(map(files.json_line, items)))
    return {
        "verdict": told,
        "cause": judging.cause(told, found),
        "targets": wanted.targets,
        "signals": [signal.as_dict() for signal in found],
        "detectors": quality,
        "bound_to": binding.digests(run, wanted),
        "checks": [],
        "remedy": NEEDED.get(told, "").format(folder=run.record.parent, override=OVERRIDE),
    }


# -- another model --------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    parser.add_argument("--model", type=Path, help="measure this model folder instead, and export nothing")
    parser.add_argument("--metrics", help="of --model: safety,coherence,knowledge instead of evaluation.metrics")
    parser.add_argument("--targets", help="of --model: targets, by commas, instead of evaluation.targets")


def another(run: phase.Run) -> bool:
    arguments = run.arguments
    if arguments.model is None:
        return False
    if not (arguments.model / "config.json").is_file() and not (arguments.model / "adapter_config.json").is_file():
        raise ForgeError(f"{arguments.model} holds no model", "name a folder with config.json or adapter_config.json")
    settings = run.settings["evaluation"]
    for key in ("metrics", "targets"):
        if getattr(arguments, key):
            settings[key] = [name.strip() for name in getattr(arguments, key).split(",") if name.strip()]
    unknown = set(settings["metrics"]) - {"safety", "coherence", "knowledge"}
    if unknown:
        raise ForgeError(f"no metric {min(unknown)!r}", "name some of safety,coherence,knowledge")
    run.load_inputs()
    wanted = gather(run)
    run.record = run.layout.gate("evaluate") / "others" / arguments.model.name / "gate.ok"
    found, items = [], []
    if wanted.pairs and "safety" in settings["metrics"]:
        before, after = measure(run, wanted, arguments.model)
        found, items = signals_of(run, wanted, before, after, after.get("questions", []))
    facts = verdict(run, wanted, found, items)
    files.write_json(run.record.parent / "verdict.json", {**facts, "model": arguments.model.name})
    if facts["verdict"] != signals.PASS:
        raise ForgeError(f"{arguments.model}: {facts['cause']}", f"read {run.record.parent}", GATE_NOT_PASSED)
    return True


if __name__ == "__main__":
    phase.start(__doc__, "evaluate", work, add_arguments, another)
