"""Merging and converting in the usual form: peft's merge_and_unload, save_pretrained, llama.cpp's converter, and its
quantizer. The reference of bench/merge.py and bench/quantize.py.

  reference_merge.py merge BASE ADAPTER OUT-FOLDER
  reference_merge.py gguf BASE ADAPTER OUT-FILE NAME CONVERTER
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

QUANTIZATION = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M


def main():
    kind, base, adapter, out, *more = sys.argv[1:]
    if kind == "merge":
        merge(base, adapter, out)
    else:
        gguf(base, adapter, Path(out), *more)


def merge(base, adapter, out):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def gguf(base, adapter, out, name, converter):
    merged, full = out.with_name(Path(base).name), out.with_name("full.gguf")  # llama.cpp reads folders' names
    print("benchmark part merge", flush=True)
    subprocess.run([sys.executable, __file__, "merge", base, adapter, str(merged)], check=True)
    print("benchmark part convert", flush=True)
    # the base's own settings, so that the two files can be compared byte for byte
    (merged / "config.json").write_bytes((Path(base) / "config.json").read_bytes())
    (merged / "generation_config.json").unlink(missing_ok=True)
    command = [sys.executable, converter, str(merged), "--outfile", str(full), "--outtype", "bf16"]
    subprocess.run([*command, "--model-name", name], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("benchmark part quantize", flush=True)
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = QUANTIZATION, os.cpu_count()
    code = llama_cpp.llama_model_quantize(str(full).encode(), str(out).encode(), ctypes.byref(parameters))
    if code != 0:
        raise SystemExit(f"llama_model_quantize ended with {code}")


if __name__ == "__main__":
    main()
