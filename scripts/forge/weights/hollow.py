"""Models that have shapes and no memory, on torch's meta device: built from config.json alone, to be counted."""

import math
from dataclasses import dataclass
from pathlib import Path

from forge import models
from forge.errors import BAD_INPUT, ForgeError, one_line

BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit formats
SCALES = 256  # scales that share a scale, with double quantization


@dataclass(frozen=True)
class Weights:
    """A base, counted.

    `total` weights, tied ones once; `packed` of them in layers that 4 bits hold, `packed_layers` of these; `largest`
    weights of the largest tensor; `head` weights of the projection to the vocabulary; `linear` weights that every token
    is multiplied with, the head's not among them; `layer` weights of the largest of these layers, `widest` numbers that
    one of them makes of a token at most.
    """

    total: int
    packed: int
    packed_layers: int
    largest: int
    head: int
    linear: int
    layer: int
    widest: int

    def four_bit_bytes(self, double: bool) -> int:
        """Bytes of the packed layers: half a byte a weight, a scale a block (Dettmers et al. 2023, section 3).

        A scale is 4 bytes, or with double quantization 1 byte and its share of 4 more.
        """
        scale = 1 + 4 / SCALES if double else 4
        table = 4 * 16 + (4 * 256 + 4 if double else 0)  # values that the 4 (and 8) bits stand for
        return math.ceil(self.packed * (0.5 + scale / BLOCK)) + self.packed_layers * table


def config_of(folder: Path):
    """The base's config. Raises ForgeError (2) for an architecture that transformers does not have."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ForgeError(
            f"transformers does not know this model: {one_line(error)[:200]}",
            "choose a base that it supports",
            BAD_INPUT,
        ) from None


def causal_lm(config, dtype: str, attention: str | None = None):
    """A causal language model on the meta device: names, shapes and types, no bytes."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    model.config.use_cache = False
    return model


def count(model) -> Weights:
    """The weights of a model without an adapter; parameters() gives tied ones once."""
    import torch

    head, packed = model.get_output_embeddings(), packed_layers(model).values()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return Weights(
        total=sum(parameter.numel() for parameter in model.parameters()),
        packed=sum(layer.weight.numel() for layer in packed),
        packed_layers=len(packed),
        largest=max(parameter.numel() for parameter in model.parameters()),
        head=head.weight.numel(),
        linear=sum(layer.weight.numel() for layer in linear),
        layer=max(layer.weight.numel() for layer in linear),
        widest=max(layer.out_features for layer in linear),
    )


def trained(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted(model, lora: dict):
    """peft's model of it and of an adapter as the config's section `lora` has it, on the meta device, too.

    Raises ForgeError (2) when the model has no such modules.
    """
    import torch

    try:
        with torch.device("meta"):
            return models.adapter_on(model, lora)
    except ValueError as error:
        raise ForgeError(
            f"no adapter can be put on this base: {one_line(error)[:200]}", "correct lora.target_modules", BAD_INPUT
        ) from None


def packed_layers(model) -> dict:
    """The layers that transformers gives to bitsandbytes, by name: linear ones, the head and its like excepted."""
    import torch
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, kept)
    }
