"""The loss of adapters on held-out rows, by one function for all: heldout.py BASE DATASET OUT.json ADAPTER...

Reads a base's folder, a folder of dataset_package/ and folders of adapters on that base. The base is held in fp32, as
it is on disk: how it was quantized for training is no part of the measure. OUT.json gets the loss of the base and of
each adapter, in nats a token that carries loss, and the tokens of the training rows as forge.chat renders them.
"""

import argparse
from pathlib import Path

from harness import files

ROWS = 200  # held-out rows at most; the starter has 78
DTYPE = "float32"


def main() -> None:
    from forge import models

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER")
    arguments = parser.parse_args()
    models.prepare(repeats=True)
    files.write_json(arguments.out, measured(arguments.base, arguments.dataset, arguments.adapters))


def measured(base: Path, dataset: Path, adapters: list[Path]) -> dict:
    from forge import chat, compare, models

    tokenizer = models.tokenizer(base)
    rows = compare.heldout_rows(dataset, tokenizer, ROWS)
    before = compare.scores(compare.hugging_face(models.causal_lm(base, DTYPE)), rows)
    found = []
    for folder in adapters:
        model = models.with_adapter(models.causal_lm(base, DTYPE), folder)
        found.append(compare.compare(rows, before, compare.hugging_face(model)))
    trained = files.read_jsonl(dataset / "train.jsonl")
    return {
        "rows": len(rows),
        "base": found[0].reference_loss,
        "adapters": [item.other_loss for item in found],
        "tokens": sum(len(chat.encode_row(tokenizer, row)["input_ids"]) for row in trained),
    }


if __name__ == "__main__":
    main()
