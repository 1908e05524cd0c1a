"""Check every GGUF file against the merged model that it was made from (a gate).

Reads gguf.fidelity, evaluation.*, project.system_prompt and project.identity of the config, the merged model,
the GGUF files and the held-out rows. For each file: the metadata is whole, chat template and token ids equal
the model's, no start token is doubled, KL divergence and agreement on held-out rows keep their limits, and
it answers; the identity question must be answered with the expected text. Writes verdict.json, items.jsonl,
models/gguf/<name>.fidelity.json and, on PASS, gate.ok.
"""

import os
from pathlib import Path

from forge import chat, compare, files, llama, models, phase

# Conversations whose rendering or splitting goes wrong first.
CONVERSATIONS = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Caf\u00e9 \U0001f600 12345 \u4f60\u597d?"},
    ],
    [
        {"role": "user", "content": "def f(x):\n    return x  # tab\there"},
        {"role": "assistant", "content": "  Fine.  "},
        {"role": "user", "content": "And now?\n\n"},
    ],
)


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    models.prepare()
    tokenizer = models.tokenizer(run.layout.merged)
    rows = compare.heldout_rows(run.layout.dataset, tokenizer, run.settings["evaluation"]["heldout_rows"])
    merged = compare.scores(
        compare.hugging_face(models.causal_lm(run.layout.merged, run.facts("merge")["dtype"])), rows
    )
    found, fidelity, items = [], {}, []
    for quantization, made in run.facts("gguf")["files"].items():
        path = run.layout.gguf_folder / made["name"]
        checks, fidelity[quantization], answers = verify(run, path, tokenizer, rows, merged)
        found += [{**check, "name": f"{quantization}: {check['name']}"} for check in checks]
        items += [{"quantization": quantization, **answer} for answer in answers]
    files.write_text(run.record.parent / "items.jsonl", "".join(map(files.json_line, items)))
    files.write_json(run.layout.gguf_folder / f"{run.layout.name}.fidelity.json", fidelity)
    return {
        "checks": found,
        "fidelity": fidelity,
        "remedy": "choose a larger quantization (Q5_K_M, Q8_0), train longer, or set gguf.fidelity to what you accept",
    }


def verify(run: phase.Run, path: Path, tokenizer, rows: list[dict], merged: list) -> tuple[list, dict, list]:
    limits = run.settings["gguf"]["fidelity"]
    checks = [check_metadata(path, tokenizer)]
    context = max(len(row["input_ids"]) for row in rows) + 8
    model = llama.load(path, context=context, logits_all=True)
    checks.append(check_tokens(model, tokenizer))
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
    checks += check_answers(run, answers)
    return checks, result.as_dict(), answers


def check_metadata(path: Path, tokenizer) -> dict:
    """Header readable, template byte-equal to the model's, vocabulary as long as the tokenizer's or padded."""
    header = llama.header(path)
    problems = []
    if header.get("tokenizer.chat_template") != tokenizer.chat_template:
        problems.append("chat template")
    if len(header.get("tokenizer.ggml.tokens", [])) < len(tokenizer):
        problems.append("vocabulary")
    if chat.end_token(tokenizer) not in _end_ids(header):
        problems.append("end token")
    return {
        "name": "metadata that differs from the model's",
        "value": ", ".join(problems) or "none",
        "limit": "none",
        "n": len(header),
        "passed": not problems,
    }


def _end_ids(header: dict) -> set:
    """llama.cpp ends a generation at any of these."""
    return {header.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}


def check_tokens(model, tokenizer) -> dict:
    """Rendered conversations give the same token ids in both, with no second start token in front."""
    wrong = []
    for conversation in CONVERSATIONS:
        try:
            text = chat.render(tokenizer, conversation, generation_prompt=True)
        except chat.ForgeError:
            continue  # a template without system role, say: it refuses in training too
        theirs = model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        if theirs != tokenizer(text, add_special_tokens=False)["input_ids"]:
            wrong.append(text[:40])
    return {
        "name": "conversations that are split into other tokens",
        "value": len(wrong),
        "limit": "0",
        "n": len(CONVERSATIONS),
        "passed": not wrong,
    }


def ask(run: phase.Run, path: Path) -> list[dict]:
    """Greedy answers of the file through llama.cpp, with the file's own chat template."""
    project, limits = run.settings["project"], run.settings["evaluation"]
    held = files.read_jsonl(run.layout.dataset / "questions.jsonl")[: limits["questions"]]
    asked = [{"question": project["identity"]["question"], "facts": [project["identity"]["expected"]]}]
    asked += [{"question": row["prompt"][-1]["content"], "facts": row.get("facts")} for row in held]
    model = llama.load(path, context=1024)
    for item in asked:
        messages = chat.conversation(project["system_prompt"], item["question"])
        made = model.create_chat_completion(messages, max_tokens=limits["max_new_tokens"], temperature=0.0)
        choice = made["choices"][0]
        item["answer"] = (choice["message"]["content"] or "").strip()
        item["stopped"] = choice["finish_reason"] == "stop"
        item["contains_facts"] = compare.contains(item["answer"], item["facts"]) if item["facts"] else None
    model.close()
    known = [item["contains_facts"] for item in asked[1:] if item["contains_facts"] is not None]
    if known:
        run.say(f"{path.name}: expected fact in {sum(known)} of {len(known)} answers to held-out questions")
    run.say(f"  {asked[0]['question']} -> {asked[0]['answer'][:100]}")
    return asked


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
