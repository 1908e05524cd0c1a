"""Check the adapter before it is merged (a gate), or ask a model one question.

Reads evaluation.* and project.system_prompt of the config, the base, the adapter and the held-out rows. The
adapter must not be zero, must change the base's logits, must lower the loss on held-out text, and its
answers must end by themselves. Writes verdict.json, items.jsonl (every answer) and, on PASS, gate.ok.

With --input or --file it answers instead of checking:
  python scripts/verify_adapter.py --input "Who are you?"
  python scripts/verify_adapter.py --model-type merged --file questions.txt --do-sample --temperature 0.7
"""

import math
from pathlib import Path

from forge import chat, compare, files, models, phase, questions
from forge.errors import INTEGRITY, ForgeError


def work(run: phase.Run) -> dict:
    models.prepare(repeats=True)
    limits = run.settings["evaluation"]
    tokenizer = models.tokenizer(run.layout.base)
    nonzero, total = adapter_weights(run.layout.adapter)
    rows = compare.heldout_rows(run.layout.dataset, tokenizer, limits["heldout_rows"])
    placed = models.place(run.layout.base)
    base = models.to_measure(run.layout.base, models.precision(run.layout.base, placed[0]), placed)
    before = compare.scores(compare.hugging_face(base), rows, run.progress("held-out rows scored by the base"))
    held = questions.heldout(run.layout.dataset, limits["questions"])
    asked = [row["prompt"] for row in held] or [chat.conversation(system_prompt(run), "Who are you?")]
    told = run.progress("questions answered by the base")
    answers_before = compare.answers(base, tokenizer, asked, limits["max_new_tokens"], told=told)
    model = models.with_adapter(base, run.layout.adapter)
    told = run.progress("held-out rows scored by the tuned model")
    found = compare.compare(rows, before, compare.hugging_face(model), told)
    run.say(f"loss on {found.n_rows} held-out rows: base {found.reference_loss:.3f}, tuned {found.other_loss:.3f}")
    told = run.progress("questions answered by the tuned model")
    answers = compare.answers(model, tokenizer, asked, limits["max_new_tokens"], told=told)
    return {
        "checks": list(checks(found, answers, nonzero, total, limits)),
        "comparison": found.as_dict(),
        "answers": keep_items(run, held, {"base": answers_before, "tuned": answers}),
        "remedy": "train longer or with another learning_rate; answers are in "
        f"{run.record.parent}/items.jsonl, the limits in the config's evaluation section",
    }


def adapter_weights(folder: Path) -> tuple[int, int]:
    """How many of the adapter's B matrices are not zero, and how many there are.

    LoRA starts with B = 0: a zero B means that nothing was learned there. Raises ForgeError (6) on NaN.
    """
    import torch
    from safetensors import safe_open

    nonzero = total = 0
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - no dict
            tensor = weights.get_tensor(name)
            if not torch.isfinite(tensor).all():
                raise ForgeError(
                    f"{name} of the adapter holds NaN or infinity", "train again with a lower learning_rate", INTEGRITY
                )
            if "lora_B" in name or "lora_embedding_B" in name:
                total += 1
                nonzero += bool(tensor.any())
    return nonzero, total


def checks(found: compare.Comparison, answers: list[dict], nonzero: int, total: int, limits: dict):
    stopped = sum(answer["stopped"] for answer in answers)
    rate = stopped / len(answers)
    yield {
        "name": "adapter matrices that are not zero",
        "value": nonzero,
        "limit": f"all of {total}",
        "n": total,
        "passed": nonzero == total > 0,
    }
    yield {
        "name": "largest change of a log-probability",
        "value": found.max_difference,
        "limit": "> 0.01 and finite",
        "n": found.n_tokens,
        "passed": found.max_difference > 0.01 and math.isfinite(found.max_difference),
    }
    yield {
        "name": "loss on held-out rows",
        "value": found.other_loss,
        "limit": f"< {found.reference_loss:.4f} of the base",
        "n": found.n_tokens,
        "passed": found.other_loss < found.reference_loss,
    }
    yield {
        "name": "answers that end by themselves",
        "value": rate,
        "limit": f">= {limits['minimum_stop_rate']}",
        "n": len(answers),
        "passed": rate >= limits["minimum_stop_rate"],
    }


def keep_items(run: phase.Run, held: list[dict], answers: dict[str, list[dict]]) -> dict:
    """Every answer of base and tuned model is kept. Returns for both how many contain their fact and how many end.

    A diagnostic here: no limit is set on the facts.
    """
    items = []
    for number, row in enumerate(held):
        item = {"id": row["id"], "question": questions.text_of(row), "facts": row.get("facts")}
        for who, said in answers.items():
            known = questions.right(said[number]["answer"], row.get("facts"))
            item[who] = {**said[number], "contains_facts": known}
        items.append(item)
    files.write_text(run.record.parent / "items.jsonl", "".join(map(files.json_line, items)))
    found = {who: questions.score([item[who] for item in items]) for who in answers}
    if found["tuned"]["asked"]:
        counts = ", ".join(f"{who} {figures['right']}" for who, figures in found.items())
        run.say(f"answers with the expected fact, of {found['tuned']['asked']} held-out questions: {counts}")
    return found


def system_prompt(run: phase.Run) -> str:
    return run.settings["project"]["system_prompt"]


# -- one question ---------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    parser.add_argument("--input", help="ask this question and print the answer")
    parser.add_argument("--file", type=Path, help="ask every line of this file")
    parser.add_argument("--model-type", choices=("adapter", "merged"), default="adapter", help="which model to ask")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--greedy", action="store_true", help="the likeliest token each time (the default)")
    way.add_argument("--do-sample", action="store_true", help="sample, with --temperature")
    parser.add_argument("--temperature", type=float, default=0.7, help="of --do-sample")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="tokens an answer may have")


def ask(run: phase.Run) -> bool:
    arguments = run.arguments
    if arguments.input is None and arguments.file is None:
        return False
    wanted = questions_of(arguments)
    models.prepare(repeats=True)
    placed = models.place(run.layout.base)
    dtype = models.precision(run.layout.base, placed[0])
    if arguments.model_type == "merged":
        folder, model = run.layout.merged, None
    else:
        folder = run.layout.adapter
    if not (folder / "manifest.json").is_file():
        raise ForgeError(f"{folder} is not there yet", "run make train (adapter) or make merge (merged)")
    if arguments.model_type == "merged" and not list(folder.glob("*.safetensors")):
        raise ForgeError(
            "the merged model was not kept (merge.keep)", "leave --model-type out: the adapter says the same"
        )
    if arguments.model_type == "merged":
        model = models.to_measure(folder, dtype, placed)
    else:
        model = models.with_adapter(models.to_measure(run.layout.base, dtype, placed), folder)
    tokenizer = models.tokenizer(run.layout.base)
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.do_sample else None
    for question in wanted:
        conversation = chat.conversation(system_prompt(run), question)
        answer = compare.answers(model, tokenizer, [conversation], arguments.max_new_tokens, sampling)[0]
        cut = "" if answer["stopped"] else f" [cut at {arguments.max_new_tokens} tokens]"
        print(f"> {question}\n{answer['answer']}{cut}\n")
    return True


def questions_of(arguments) -> list[str]:
    if arguments.input is not None:
        return [arguments.input]
    if not arguments.file.is_file():
        raise ForgeError(f"{arguments.file} does not exist", "name a text file with one question a line")
    try:
        lines = [line.strip() for line in arguments.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ForgeError(f"{arguments.file} is not UTF-8", "save it as UTF-8") from None
    if not lines:
        raise ForgeError(f"{arguments.file} holds no question", "write one question a line")
    return lines


if __name__ == "__main__":
    phase.start(__doc__, "verify-adapter", work, add_arguments, ask)
