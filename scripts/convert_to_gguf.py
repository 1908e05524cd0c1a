"""Quantize the merged model: models/gguf/<name>-<QUANTIZATION>.gguf.

Reads gguf.quantizations, gguf.importance_matrix and project.{name, version, description, license} of the config and the
merged model, or base and adapter where that was not kept, and what the file is to say of its origin. All files are
quantized in one pass, straight from the weights, byte for byte as by llama.cpp's converter and quantizer one after the
other. Where a model is outside of what that covers, and for an importance matrix, which llama.cpp's llama-imatrix
measures on training rows, these two are taken, over a 16-bit file that is removed once verify-gguf has passed. Writes
the files and <name>.gguf.json.
"""

from pathlib import Path

from forge import disk, files, models, phase
from forge.errors import BAD_INPUT, ForgeError
from forge.llamacpp import converter, ggufmeta, importance, llama
from forge.quantizing import process

METADATA = "metadata.json"
SOURCE = "source"


def work(run: phase.Run) -> dict:
    wanted = run.settings["gguf"]["quantizations"]
    for quantization in wanted:
        llama.file_type(quantization)  # an unknown name is refused before the conversion, not after
    if run.settings["gguf"]["importance_matrix"]:
        importance.tool(run.say)  # as is a machine without a compiler
    shapes = models.tensor_shapes(run.layout.base)
    needed = sum(disk.gguf_bytes(shapes, quantization) for quantization in wanted)
    files.require_free_space(run.staging, needed, "the conversion")
    facts = run.facts("merge")
    model = described(run)
    made = {name: run.staging / run.layout.gguf(name).name for name in wanted}
    quantized = {name: path for name, path in made.items() if name not in converter.WHOLE}
    temporary, measured, way = None, None, "straight from the weights"
    try:
        if run.settings["gguf"]["importance_matrix"]:
            raise process.Unsupported("the importance matrix is measured on it")
        if quantized:
            found = process.quantize(process.weights_of(run.layout, facts), model, quantized, run.progress("tensors"))
            run.hashes = {quantized[name].name: digest for name, digest in found.items()}
    except process.Unsupported as reason:
        way = f"over a 16-bit file: {reason}"
        temporary, measured = usual_way(run, model, quantized, disk.weights(shapes) * disk.BYTES[facts["dtype"]])
    for name in converter.WHOLE.keys() & made.keys():
        converter.convert(model["folder"], made[name], converter.WHOLE[name], model["name"], model["metadata"])
    run.say(f"converted {way}")
    for old in run.layout.gguf_folder.glob(f".{run.layout.name}-*.gguf"):  # of a run whose gate did not pass
        if old.name != temporary:
            run.discard_later(old)
    for name in (METADATA, SOURCE, importance.TEXT, importance.MATRIX):
        files.remove(run.staging / name)
    return {
        "files": {name: summary(run, path) for name, path in made.items()},
        "deployed": made[wanted[0]].name,
        "way": way,
        "temporary": temporary,
        "importance_matrix": measured,
    }


def described(run: phase.Run) -> dict:
    """What llama.cpp's converter is told: folder, name, type of the 16-bit file, and metadata to trace it by."""
    metadata = run.staging / METADATA
    files.write_json(metadata, ggufmeta.metadata(run))
    return {
        "folder": converter.for_converter(run.layout.merged, run.staging / SOURCE, ggufmeta.card(run)),
        "name": converter.shown_name(run.layout.merged, run.layout.name),
        "outtype": converter.OUTTYPES[run.facts("merge")["dtype"]],
        "metadata": metadata,
    }


def usual_way(run: phase.Run, model: dict, quantized: dict[str, Path], size: int) -> tuple[str, dict | None]:
    """llama.cpp's converter, then its quantizer.

    Name of the 16-bit file, hidden, that verify-gguf is to remove; what the record tells of an importance matrix.
    """
    if not run.facts("merge")["kept"]:
        raise ForgeError(
            "this model's GGUF cannot be made without the merged model", "set merge.keep to true", BAD_INPUT
        )
    files.require_free_space(run.staging, size, "the 16-bit file")
    full = run.staging / f".{run.layout.name}-{model['outtype'].upper()}.gguf"
    converter.convert(model["folder"], full, model["outtype"], model["name"], model["metadata"])
    measured = importance_matrix(run, full)
    matrix = importance.entries(run.staging / importance.MATRIX) if measured else None
    for name, path in quantized.items():
        llama.quantize(full, path, name, matrix)
    return full.name, measured


def importance_matrix(run: phase.Run, full: Path) -> dict | None:
    """Measured on training rows into run.staging, where the config asks for one; what the record tells of it."""
    if not run.settings["gguf"]["importance_matrix"]:
        return None
    models.prepare()
    tokenizer = models.tokenizer(run.layout.merged)
    return importance.measure(full, run.layout.dataset, tokenizer, run.staging, run.say)


def summary(run: phase.Run, path: Path) -> dict:
    size = path.stat().st_size
    run.say(f"{path.name}: {size / 1e6:.1f} MB")
    run.hashes.setdefault(path.name, files.sha256_file(path))
    return {"name": path.name, "size": size, "sha256": run.hashes[path.name]}


if __name__ == "__main__":
    phase.start(__doc__, "gguf", work)
