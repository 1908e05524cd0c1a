"""The model that is trained: the base in 4 or 16 bits, and the adapter on it, in fp32."""

from pathlib import Path

from forge import models
from forge.training import attention
from forge.training.choices import Choices


def load(folder: Path, quantization: dict, choices: Choices):
    """The base of a folder in 4 bits (QLoRA, Dettmers et al. 2023) or in the compute dtype.

    With `choices.unpack` its linear layers hold the values that the 4-bit ones stand for: bitsandbytes unpacks them
    before each product, forward and backward, and on two cores that took half of a step.

    With `choices.sharded` 16-bit weights are read into RAM by every process and go to its GPU layer by layer, as they
    are cut; 4-bit ones are held in words of the compute dtype, for only floats can be cut.
    """
    import torch
    from transformers import BitsAndBytesConfig

    attention.register()
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["bnb_4bit_quant_type"],
        bnb_4bit_use_double_quant=quantization["bnb_4bit_use_double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, choices.dtype),
        bnb_4bit_quant_storage=getattr(torch, choices.dtype) if choices.sharded else None,
    )
    where = "cpu" if choices.sharded and (choices.unpack or not choices.four_bit) else None
    model = models.causal_lm(folder, choices.dtype, four_bit if choices.four_bit else None, choices.attention, where)
    if choices.unpack:
        model = model.dequantize(dtype=getattr(torch, choices.dtype))
    model.config.use_cache = False
    # On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights for inference, with scales rounded to bf16, and
    # back for training: every evaluation would change the base, and a resumed run would train on another one.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def new_adapter(model, lora: dict, seed: int):
    """A fresh adapter on the base: A drawn by `seed`, B zero."""
    from transformers import set_seed

    set_seed(seed)
    return models.adapter_on(model, lora)


def old_adapter(model, folder: Path):
    """The adapter that an earlier stage trained, to be trained further."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def in_fp32(model) -> None:
    """trl casts a quantized model's adapter to bf16, but on resume peft loads it as fp32: another training from there
    on. In fp32 throughout, a resumed run equals an uninterrupted one bit for bit."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
