"""From base and adapter to Q4_K_M without a 16-bit file, beside the usual chain: peft's merge, llama.cpp's converter,
llama.cpp's quantizer.

For each shape (bench/shapes.py) both write one file; then the two are compared, byte for byte. Rows are the shapes and,
for the reference, its steps. It takes 56 GB of disk with 7B. The JSON line's figures are those of the last shape.
"""

import filecmp
import functools
import os
import sys
import tempfile
from pathlib import Path

import harness
from forge import llama, phase
from forge.errors import ForgeError

HERE = Path(__file__).resolve().parent
STEPS = ("merge", "convert", "quantize")


def main() -> None:
    parser = harness.parser(__doc__, repeat=1)
    parser.add_argument("--shapes", nargs="+", choices=("0.5B", "1.5B", "7B"), default=["0.5B", "1.5B", "7B"])
    parser.add_argument("--models", type=Path, help="folder to make the models in, and to leave them for other runs")
    arguments = parser.parse_args()
    phase.guard(lambda: compare(arguments.shapes, arguments.repeat, arguments.models), arguments.debug)


def compare(shapes: list[str], repeat: int, kept: Path | None) -> None:
    import shapes as models_of

    models_of.prepare()
    rows = []
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as name:
            folder = Path(name)
            base, adapter = models_of.make(kept or folder, shape)
            sides = [functools.partial(made, side, folder, base, adapter) for side in ("ours", "reference")]
            ours, reference = harness.alternate(sides, repeat)
            if not filecmp.cmp(folder / "ours/out.gguf", folder / "reference/out.gguf", shallow=False):
                raise ForgeError("the two files differ", "look at the versions of llama.cpp, peft and transformers")
        print(f"{shape}: the files are equal to the byte", flush=True)
        for step, name in enumerate(STEPS):
            rows.append(harness.row(f"{shape}: {name}", [], [parts[step] for parts in reference]))
        totals = ([harness.total(shape, parts) for parts in side] for side in (ours, reference))
        rows.append(harness.row(shape, *totals))
    harness.report("gguf", rows, headline=rows[-1])


def made(side: str, folder: Path, base: Path, adapter: Path) -> list[harness.Figures]:
    import shapes as models_of

    models_of.free(folder / side)
    os.sync()  # what the other side wrote is on the disk before this one begins
    command = [sys.executable, str(HERE / f"{side}_merge.py"), "gguf", str(base), str(adapter)]
    command += [str(folder / side / "out.gguf"), "bench"]
    if side == "reference":
        command.append(str(llama.source().resolve() / "convert_hf_to_gguf.py"))
    return harness.measure(command, folder, side)


if __name__ == "__main__":
    main()
