"""Convert the merged model to GGUF and quantize it: models/gguf/<name>-<QUANTIZATION>.gguf.

Reads gguf.quantizations and project.{name, version, description, license} of the config and the merged model.
llama.cpp's own converter makes one 16-bit file, llama.cpp's library quantizes it once a quantization. The
16-bit file is removed unless it was asked for. Writes the files and <name>.gguf.json.
"""

from pathlib import Path

from forge import files, llama, phase

# Bits a weight of the largest common types, to know whether the disk suffices (llama.cpp's own tables).
BITS = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7}
WHOLE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def work(run: phase.Run) -> dict:
    wanted = run.settings["gguf"]["quantizations"]
    for quantization in wanted:
        llama.file_type(quantization)  # an unknown name is refused before the conversion, not after
    size = sum(item["size"] for item in run.inputs["merge"]["subject"] if item["name"].endswith(".safetensors"))
    needed = size + sum(size * BITS.get(quantization, 5) / 16 for quantization in wanted)
    files.require_free_space(run.staging, int(needed), "the conversion")
    full = convert(run, run.staging)
    made = {}
    for quantization in wanted:
        out = run.staging / run.layout.gguf(quantization).name
        if quantization == full.stem.rpartition("-")[2]:
            pass  # the converter's own file is the wanted one
        elif quantization in WHOLE:
            llama.convert(run.layout.merged, out, WHOLE[quantization], run.layout.name)
        else:
            llama.quantize(full, out, quantization)
        made[quantization] = summary(run, out)
    if full.name not in {run.layout.gguf(quantization).name for quantization in wanted}:
        full.unlink()
    (run.staging / METADATA).unlink()
    return {"files": made, "deployed": run.layout.gguf(wanted[0]).name}


METADATA = "metadata.json"


def convert(run: phase.Run, folder: Path) -> Path:
    """The 16-bit file, in the dtype of the merged weights, with metadata that lets a stranger trace it."""
    project = run.settings["project"]
    files.write_json(
        folder / METADATA,
        {
            "general.name": project["name"],
            "general.version": project["version"],
            "general.description": project["description"],
            "general.license.name": project["license"],
            "general.finetune": "model-forge",
        },
    )
    outtype = {"float32": "f32", "float16": "f16"}.get(run.facts("merge")["dtype"], "bf16")
    full = folder / f"{run.layout.name}-{outtype.upper()}.gguf"
    llama.convert(run.layout.merged, full, outtype, run.layout.name, ["--metadata", str(folder / METADATA)])
    run.say(f"converted to {outtype}: {full.stat().st_size / 1e6:.0f} MB")
    return full


def summary(run: phase.Run, path: Path) -> dict:
    size = path.stat().st_size
    run.say(f"{path.name}: {size / 1e6:.1f} MB")
    return {"name": path.name, "size": size, "sha256": files.sha256_file(path)}


if __name__ == "__main__":
    phase.start(__doc__, "gguf", work)
