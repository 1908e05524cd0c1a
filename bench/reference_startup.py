"""A fine-tuning script in the usual form: the libraries first, then arguments, config and files.

The reference of bench/startup.py. It does not train: it reads its config (an unknown key is refused by the
libraries' own classes) and, where all outputs exist, says that there is nothing to do.
"""

import argparse
from pathlib import Path

import datasets  # noqa: F401
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: F401
from trl import SFTConfig, SFTTrainer  # noqa: F401

NOT_OF_TRL = ("stages", "attention", "keep", "canary_steps", "preference", "launch")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config/training_config.yaml", help="the config file")
    arguments = parser.parse_args()

    config = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
    BitsAndBytesConfig(**{**config["quantization"], "bnb_4bit_compute_dtype": torch.float32})
    LoraConfig(**config["lora"])
    training = {key: value for key, value in config["training"].items() if key not in NOT_OF_TRL}
    SFTConfig(output_dir="unused", use_cpu=not torch.cuda.is_available(), bf16=False, **training)

    name = config["project"]["name"]
    outputs = [
        Path(f"models/{name}-adapter"),
        Path(f"models/merged/{name}-merged"),
        Path(f"models/gguf/{name}.Modelfile"),
    ]
    missing = [str(path) for path in outputs if not path.exists()]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}")
    print("all outputs exist, nothing to do")


if __name__ == "__main__":
    main()
