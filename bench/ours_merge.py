"""What the phases merge and gguf do with the weights, without their checks and records: ours of bench/merge.py and
bench/quantize.py.

  ours_merge.py merge BASE ADAPTER OUT-FOLDER
  ours_merge.py gguf BASE ADAPTER OUT-FILE NAME
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

QUANTIZATION = "Q4_K_M"


def main() -> None:
    kind, base, adapter, out, *name = sys.argv[1:]
    (merge if kind == "merge" else gguf)(Path(base), Path(adapter), Path(out), *name)


def merge(base: Path, adapter: Path, out: Path) -> None:
    from forge import models

    models.prepare()
    from forge.weights import merging, sharding

    sharding.write(merging.Merged(base, adapter, "bfloat16"), out, "1GB")
    for pattern in ("*.json", "tokenizer*"):
        for path in base.glob(pattern):
            if "index" not in path.name:
                shutil.copyfile(path, out / path.name)


def gguf(base: Path, adapter: Path, out: Path, name: str) -> None:
    from forge.quantizing import process

    metadata = out.with_suffix(".json")
    metadata.write_text(json.dumps({"general.name": name}), encoding="utf-8")
    weights = {"folder": str(base), "adapter": str(adapter), "dtype": "bfloat16", "rounding": None}
    model = {"folder": base, "name": name, "outtype": "bf16", "metadata": metadata}
    process.quantize(weights, model, {QUANTIZATION: out})
    metadata.unlink()


if __name__ == "__main__":
    main()
