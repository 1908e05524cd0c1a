"""From base and adapter to Q4_K_M without a 16-bit file, beside the usual chain: peft's merge, llama.cpp's converter,
llama.cpp's quantizer.

For each shape (bench/shapes.py) both write one file; then the two are compared, byte for byte. Rows are the shapes and,
for the reference, its steps. It takes 56 GB of disk with 7B. The JSON line's figures are those of the last shape.
"""

import filecmp
import functools
import sys
import tempfile
from pathlib import Path

import harness
import shapes
from forge import command
from forge.errors import ForgeError
from forge.llamacpp import llama

HERE = Path(__file__).resolve().parent
STEPS = ("merge", "convert", "quantize")


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
    shapes.fresh(folder / side, base, adapter)
    command = [sys.executable, str(HERE / f"{side}_merge.py"), "gguf", str(base), str(adapter)]
    command += [str(folder / side / "out.gguf"), "bench"]
    if side == "reference":
        command.append(str(llama.source().resolve() / "convert_hf_to_gguf.py"))
    return harness.measure(command, folder, side)


if __name__ == "__main__":
    main()
