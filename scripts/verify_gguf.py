"""Check every GGUF file against the merged model that it was made from (a gate).

Reads gguf.fidelity, evaluation.*, project.system_prompt and project.identity of the config, the merged model,
the GGUF files and the held-out rows. For each file: the metadata is whole, its chat template writes the same
conversations to the byte as the model's, token ids are equal, no start token is doubled, KL divergence and agreement
on held-out rows keep their limits, and it answers; the identity question must be answered with the expected text.
Looks for a TEMPLATE that makes Ollama write these conversations so, too. Writes verdict.json, items.jsonl, template
(if there is one), models/gguf/<name>.fidelity.json and, on PASS, gate.ok.
"""

import os
from pathlib import Path

from forge import compare, files, models, phase, questions, vocabulary
from forge.evaluating import shipped
from forge.llamacpp import llama
from forge.quantizing import checks as tensors
from forge.weights import merging, streaming

OTHER_TEXT = "make setup, then make redo PHASE=gguf; if that does not help, choose a base that this llama.cpp can serve"


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    models.prepare()
    tokenizer = models.tokenizer(run.layout.merged)
    rows = compare.heldout_rows(run.layout.dataset, tokenizer, run.settings["evaluation"]["heldout_rows"])
    weights = merging.result(run.layout, run.facts("merge"))
    told = run.progress("layers of the merged model")
    merged = compare.scores(streaming.scorer(weights, told=told), rows)
    found, fidelity, said, items = [], {}, {}, []
    compared, missing = compare_tensors(run, found)
    for quantization, made in run.facts("gguf")["files"].items():
        path = run.layout.gguf_folder / made["name"]
        checks, fidelity[quantization], answers = verify(run, path, tokenizer, rows, merged)
        if path in compared:
            checks += tensors.checks(compared[path])
            fidelity[quantization] |= tensors.figures(compared[path])
        found += [{**check, "name": f"{quantization}: {check['name']}"} for check in checks]
        items += [{"quantization": quantization, **answer} for answer in answers]
        said[quantization] = questions.score(answers[1:])  # the identity question is a check of its own
    files.write_text(run.record.parent / "items.jsonl", "".join(map(files.json_line, items)))
    files.write_json(run.layout.gguf_folder / f"{run.layout.name}.fidelity.json", fidelity)
    return {
        "checks": found,
        "fidelity": fidelity,
        "answers": said,
        "template": template(run, tokenizer),
        "remedy": "choose a larger quantization (Q5_K_M, Q8_0), train longer, or set gguf.fidelity to what you accept",
        **({"not_checked": missing} if missing else {}),
    }


def compare_tensors(run: phase.Run, found: list[dict]) -> tuple[dict, list[str]]:
    """What was measured of each file's tensors, and what could not be. A 16-bit file between is checked, too, and may
    go when the gate has passed."""
    facts = run.facts("gguf")
    folder = run.layout.gguf_folder
    paths = [folder / made["name"] for made in facts["files"].values()]
    temporary = folder / facts["temporary"] if facts["temporary"] else None
    if temporary is not None and temporary.is_file():
        paths.append(temporary)
        run.discard_later(temporary)
    compared = tensors.measured(run.layout, run.facts("merge"), paths, run.progress("tensors compared"))
    if isinstance(compared, str):
        run.say(f"  skip NOT checked: tensors against the merged weights: {compared}")
        return {}, [f"tensors against the merged weights: {compared}"]
    if temporary in compared:
        found += [{**check, "name": f"16 bits: {check['name']}"} for check in tensors.checks(compared[temporary])]
    return compared, []


def verify(run: phase.Run, path: Path, tokenizer, rows: list[dict], merged: list) -> tuple[list, dict, list]:
    limits = run.settings["gguf"]["fidelity"]
    keys = len(llama.header(path))
    model = llama.load(path, context=64, vocab_only=True)
    checks = [{**check, "remedy": OTHER_TEXT} for check in vocabulary.checks(model, tokenizer, keys, own(run))]
    model.close()
    result = compare.compare(rows, merged, compare.gguf(path), run.progress(f"rows scored by {path.name}"))
    checks.append(
        {
            "name": "mean KL divergence from the merged model (nats a token)",
            "value": result.mean_kl,
            "limit": f"<= {limits['maximum_mean_kl']}",
            "n": result.n_tokens,
            "passed": result.mean_kl <= limits["maximum_mean_kl"],
        }
    )
    checks.append(
        {
            "name": "share of tokens with the same first choice",
            "value": result.top_agreement,
            "limit": f">= {limits['minimum_top_agreement']}",
            "n": result.n_tokens,
            "passed": result.top_agreement >= limits["minimum_top_agreement"],
        }
    )
    answers = ask(run, path)
    checks += [*check_answers(run, answers), *shipped.checks(run, path)]
    return checks, result.as_dict(), answers


def own(run: phase.Run) -> dict[str, list[dict]]:
    """The conversation that this model is made for."""
    return {"the project's own": questions.identity(run.settings["project"])}


def template(run: phase.Run, tokenizer) -> dict:
    """The TEMPLATE for Ollama that is shown equal for the deployed file: `name`, `sha256`, `conversations`, its text in
    the file `template`; or `name` None and `reason`."""
    path = run.record.parent / "template"
    path.unlink(missing_ok=True)
    model = llama.load(run.layout.gguf_folder / run.facts("gguf")["deployed"], context=64, vocab_only=True)
    found = vocabulary.template(model, tokenizer, own(run))
    model.close()
    if found["name"] is None:
        run.say(f"TEMPLATE for Ollama: {found['reason']}")
        return found
    files.write_text(path, found.pop("text"))
    run.say(f"TEMPLATE for Ollama: {found['name']}, equal in {found['conversations']} conversations")
    return {**found, "sha256": files.sha256_file(path)}


def ask(run: phase.Run, path: Path) -> list[dict]:
    """Answers of the file: the identity question first, then the held-out ones, each with its verdict."""
    project, limits = run.settings["project"], run.settings["evaluation"]
    held = questions.heldout(run.layout.dataset, limits["questions"])
    expected = [project["identity"]["expected"]] if project["identity"]["expected"] else None
    asked = [{"prompt": questions.identity(project), "facts": expected}, *held]
    told = run.progress(f"questions answered by {path.name}")
    answers = questions.ask_gguf(path, [row["prompt"] for row in asked], limits["max_new_tokens"], told)
    items = [
        {
            "question": questions.text_of(row),
            "facts": row.get("facts"),
            **answer,
            "contains_facts": questions.right(answer["answer"], row.get("facts")),
        }
        for row, answer in zip(asked, answers, strict=True)
    ]
    found = questions.score(items[1:])
    if found["asked"]:
        run.say(f"{path.name}: expected fact in {found['right']} of {found['asked']} answers to held-out questions")
    run.say(f"  {items[0]['question']} -> {items[0]['answer'][:100]}")
    return items


def check_answers(run: phase.Run, answers: list[dict]) -> list[dict]:
    identity, limit = run.settings["project"]["identity"], run.settings["evaluation"]["minimum_stop_rate"]
    rate = sum(item["stopped"] for item in answers) / len(answers)
    checks = [
        {
            "name": "answers that end by themselves",
            "value": rate,
            "limit": f">= {limit}",
            "n": len(answers),
            "passed": rate >= limit,
        }
    ]
    if identity["expected"]:
        checks.append(
            {
                "name": f"answer to {identity['question']!r}",
                "value": answers[0]["answer"][:80],
                "limit": f"contains {identity['expected']!r}",
                "n": 1,
                "passed": answers[0]["contains_facts"],
            }
        )
    return checks


if __name__ == "__main__":
    phase.start(__doc__, "verify-gguf", work)
