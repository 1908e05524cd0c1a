"""Check every GGUF file against the merged model that it was made from (a gate).

Reads gguf.fidelity, evaluation.*, project.system_prompt and project.identity of the config, the merged model,
the GGUF files and the held-out rows. For each file: the metadata is whole, chat template and token ids equal
the model's, no start token is doubled, KL divergence and agreement on held-out rows keep their limits, and
it answers; the identity question must be answered with the expected text. Writes verdict.json, items.jsonl,
models/gguf/<name>.fidelity.json and, on PASS, gate.ok.
"""

import os
from pathlib import Path

from forge import compare, files, llama, models, phase, questions, vocabulary
from forge.evaluating import shipped


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    models.prepare()
    tokenizer = models.tokenizer(run.layout.merged)
    rows = compare.heldout_rows(run.layout.dataset, tokenizer, run.settings["evaluation"]["heldout_rows"])
    merged = compare.scores(
        compare.hugging_face(models.causal_lm(run.layout.merged, run.facts("merge")["dtype"])), rows
    )
    found, fidelity, said, items = [], {}, {}, []
    for quantization, made in run.facts("gguf")["files"].items():
        path = run.layout.gguf_folder / made["name"]
        checks, fidelity[quantization], answers = verify(run, path, tokenizer, rows, merged)
        found += [{**check, "name": f"{quantization}: {check['name']}"} for check in checks]
        items += [{"quantization": quantization, **answer} for answer in answers]
        said[quantization] = questions.score(answers[1:])  # the identity question is a check of its own
    files.write_text(run.record.parent / "items.jsonl", "".join(map(files.json_line, items)))
    files.write_json(run.layout.gguf_folder / f"{run.layout.name}.fidelity.json", fidelity)
    return {
        "checks": found,
        "fidelity": fidelity,
        "answers": said,
        "remedy": "choose a larger quantization (Q5_K_M, Q8_0), train longer, or set gguf.fidelity to what you accept",
    }


def verify(run: phase.Run, path: Path, tokenizer, rows: list[dict], merged: list) -> tuple[list, dict, list]:
    limits = run.settings["gguf"]["fidelity"]
    keys = len(llama.header(path))
    context = max(len(row["input_ids"]) for row in rows) + 8
    model = llama.load(path, context=context, logits_all=True)
    checks = [vocabulary.check_metadata(model, tokenizer, keys), vocabulary.check_tokens(model, tokenizer)]
    result = compare.compare(rows, merged, compare.gguf(model))
    model.close()
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


def ask(run: phase.Run, path: Path) -> list[dict]:
    """Answers of the file: the identity question first, then the held-out ones, each with its verdict."""
    project, limits = run.settings["project"], run.settings["evaluation"]
    held = questions.heldout(run.layout.dataset, limits["questions"])
    expected = [project["identity"]["expected"]] if project["identity"]["expected"] else None
    asked = [{"prompt": questions.identity(project), "facts": expected}, *held]
    answers = questions.ask_gguf(path, [row["prompt"] for row in asked], limits["max_new_tokens"])
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
