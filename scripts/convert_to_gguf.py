"""Convert the merged model to GGUF and quantize it: models/gguf/<name>-<QUANTIZATION>.gguf.

Reads gguf.quantizations and project.{name, version, description, license} of the config and the merged model.
llama.cpp's own converter makes one 16-bit file, llama.cpp's library quantizes it once a quantization. The
16-bit file is removed unless it was asked for. Writes the files and <name>.gguf.json.
"""

from pathlib import Path

from forge import disk, files, ggufmeta, llama, models, phase


def work(run: phase.Run) -> dict:
    wanted = run.settings["gguf"]["quantizations"]
    for quantization in wanted:
        llama.file_type(quantization)  # an unknown name is refused before the conversion, not after
    size = sum(item["size"] for item in run.inputs["merge"]["subject"] if item["name"].endswith(".safetensors"))
    shapes = models.tensor_shapes(run.layout.merged)
    needed = size + sum(disk.gguf_bytes(shapes, quantization) for quantization in wanted)
    files.require_free_space(run.staging, needed, "the conversion")
    readable = llama.for_converter(run.layout.merged, run.staging / SOURCE, ggufmeta.card(run))
    name = llama.shown_name(run.layout.merged, run.layout.name)
    files.write_json(run.staging / METADATA, ggufmeta.metadata(run))
    full = convert(run, readable, run.staging, name)
    made = {}
    for quantization in wanted:
        out = run.staging / run.layout.gguf(quantization).name
        if quantization == full.stem.rpartition("-")[2]:
            pass  # the converter's own file is the wanted one
        elif quantization in llama.WHOLE:
            llama.convert(readable, out, llama.WHOLE[quantization], name, ["--metadata", str(run.staging / METADATA)])
        else:
            llama.quantize(full, out, quantization)
        made[quantization] = summary(run, out)
    if full.name not in {run.layout.gguf(quantization).name for quantization in wanted}:
        full.unlink()
    (run.staging / METADATA).unlink()
    files.remove(run.staging / SOURCE)
    return {"files": made, "deployed": run.layout.gguf(wanted[0]).name}


METADATA = "metadata.json"
SOURCE = "source"


def convert(run: phase.Run, readable: Path, folder: Path, name: str) -> Path:
    """The 16-bit file, in the dtype of the merged weights."""
    outtype = llama.OUTTYPES[run.facts("merge")["dtype"]]
    full = folder / f"{run.layout.name}-{outtype.upper()}.gguf"
    llama.convert(readable, full, outtype, name, ["--metadata", str(folder / METADATA)])
    run.say(f"converted to {outtype}: {full.stat().st_size / 1e6:.0f} MB")
    return full


def summary(run: phase.Run, path: Path) -> dict:
    size = path.stat().st_size
    run.say(f"{path.name}: {size / 1e6:.1f} MB")
    return {"name": path.name, "size": size, "sha256": files.sha256_file(path)}


if __name__ == "__main__":
    phase.start(__doc__, "gguf", work)
