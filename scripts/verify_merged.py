"""Check that the merged model says what base plus adapter say (a gate).

Reads evaluation.heldout_rows of the config, the base, the adapter, the merged model and the held-out rows.
All compute in 32-bit floats, so that what differs is the rounding of the merged weights to their storage type and
nothing else. Weights come from the disk layer by layer, so memory does not grow with the model; one of over 2 GB that
has to be held as a whole computes in its own type. Writes verdict.json and, on PASS, gate.ok.
"""

import os

from forge import compare, models, phase
from forge.weights import merging, streaming

# Mean KL divergence in nats a token, and share of equal first choices. bfloat16 keeps 8 bits of a weight: on the
# starter a right merge is at 6.2e-5 (n=878 tokens), one that lost the adapter at 4.6. The other types: not measured.
LIMITS = {"bfloat16": (0.01, 0.95), "float16": (0.001, 0.98), "float32": (1e-5, 0.999)}


def work(run: phase.Run) -> dict:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as the merge: 16-bit weights of 7B do not fit an 8 GB card
    models.prepare()
    tokenizer = models.tokenizer(run.layout.base)
    rows = compare.heldout_rows(run.layout.dataset, tokenizer, run.settings["evaluation"]["heldout_rows"])
    facts = run.facts("merge")
    dtype = facts["dtype"]
    base = merging.Weights(run.layout.base, dtype, facts["rounding"])
    told = {name: run.progress(f"layers of {name}") for name in ("the merged model", "base plus adapter", "the base")}
    result = merging.result(run.layout, facts)
    merged = compare.scores(streaming.scorer(result, told=told["the merged model"]), rows)
    adapted = streaming.scorer(base, run.layout.adapter, told["base plus adapter"])
    plain = streaming.scorer(base, told=told["the base"])
    found = compare.compare(rows, adapted(rows), lambda _: iter(merged))
    moved = compare.compare(rows, plain(rows), lambda _: iter(merged))
    most_kl, least_same = LIMITS[dtype]
    run.say(f"merged against base plus adapter: mean KL {found.mean_kl:.2e}; against the base: {moved.mean_kl:.2e}")
    return {
        "checks": [
            {
                "name": "mean KL divergence from base plus adapter (nats a token)",
                "value": found.mean_kl,
                "limit": f"<= {most_kl} for {dtype}",
                "n": found.n_tokens,
                "passed": found.mean_kl <= most_kl,
            },
            {
                "name": "share of tokens with the same first choice",
                "value": found.top_agreement,
                "limit": f">= {least_same}",
                "n": found.n_tokens,
                "passed": found.top_agreement >= least_same,
            },
            {
                "name": "mean KL divergence from the base: the merge did something",
                "value": moved.mean_kl,
                "limit": f"> {found.mean_kl:.2e}",
                "n": moved.n_tokens,
                "passed": moved.mean_kl > found.mean_kl,
            },
        ],
        "comparison": found.as_dict(),
        "remedy": "run make redo PHASE=merge; if it stays, report it with the verdict.json",
    }


if __name__ == "__main__":
    phase.start(__doc__, "verify-merged", work)
