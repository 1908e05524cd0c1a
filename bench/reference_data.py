"""What a usual script does with a folder of documents: pieces of 512 tokens, one row each, nothing checked.

reference_data.py FOLDER OUT.jsonl MODEL
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

LENGTH = 512


def main() -> None:
    folder, out, model = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt"))
    dataset = Dataset.from_generator(lambda: ({"text": path.read_text(encoding="utf-8")} for path in paths))

    def cut(batch: dict) -> dict:
        encoded = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        pieces = [ids[begin : begin + LENGTH] for ids in encoded for begin in range(0, len(ids), LENGTH)]
        return {"text": tokenizer.batch_decode(pieces)}

    cut_up = dataset.map(cut, batched=True, remove_columns=["text"])
    with out.open("w", encoding="utf-8") as handle:
        for row in cut_up:
            handle.write(json.dumps({"messages": [{"role": "assistant", "content": row["text"]}]}) + "\n")


if __name__ == "__main__":
    main()
