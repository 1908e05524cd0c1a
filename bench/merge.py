"""Merging an adapter into a base, weight by weight, beside peft's merge_and_unload and save_pretrained.

For each shape (bench/shapes.py) both write a whole model folder; then every weight is compared, bit for bit. Rows are
the shapes, so growth is seen, too. It takes 46 GB of disk with 7B. The JSON line's figures are those of the last shape.
"""

import functools
import sys
import tempfile
from pathlib import Path

import harness
import shapes
from forge import command
from forge.errors import ForgeError

HERE = Path(__file__).resolve().parent


def main() -> None:
    arguments = shapes.arguments(__doc__)
    command.guard(lambda: compare(arguments.shapes, arguments.repeat, arguments.models), arguments.debug)


def compare(names: list[str], repeat: int, kept: Path | None) -> None:
    shapes.prepare()
    rows = []
    for shape in names:
        with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as name:
            folder = Path(name)
            base, adapter = shapes.make(kept or folder, shape)
            sides = [functools.partial(merged, side, folder, base, adapter, shape) for side in ("ours", "reference")]
            rounds = harness.alternate(sides, repeat)
            require_equal(folder / "ours", folder / "reference")
        rows.append(harness.row(shape, *([figures for parts in side for figures in parts] for side in rounds)))
        print(f"{shape}: every weight equal", flush=True)
    harness.report("merge", rows, headline=rows[-1])


def merged(side: str, folder: Path, base: Path, adapter: Path, name: str) -> list[harness.Figures]:
    out = folder / side
    shapes.fresh(out, base, adapter)
    command = [sys.executable, str(HERE / f"{side}_merge.py"), "merge", str(base), str(adapter), str(out)]
    return harness.measure(command, folder, name)


def require_equal(ours: Path, reference: Path) -> None:
    import torch
    from forge.weights.checkpoint import Checkpoint

    left, right = Checkpoint(ours), Checkpoint(reference)
    if left.entries.keys() != right.entries.keys():
        raise ForgeError("the two models do not have the same weights", "look at the versions of peft and transformers")
    for name in left.entries:
        if not torch.equal(left.tensor(name), right.tensor(name)):
            raise ForgeError(f"{name} differs from peft's", "look at the versions of peft and transformers")


if __name__ == "__main__":
    main()
