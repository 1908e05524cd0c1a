"""Base plus adapter, one weight at a time: peft's own layer does the arithmetic of each, so the result is that of its
merge_and_unload to the last bit, without the model in memory.

The model is built with weights that take no memory: each is one number, expanded to its shape. On the CPU, for on the
meta device peft takes the adapter there, too, and its merge changes nothing, without a word. For a moment a layer
gets its true weight, merges, and hands the result over.
"""

from pathlib import Path

from forge import models
from forge.errors import INTEGRITY, ForgeError
from forge.graph import Layout
from forge.weights import hollow
from forge.weights.checkpoint import DTYPES, Checkpoint

FINITE_ROWS = 1024  # looked at together: torch makes three copies of what it looks at


class Unmergeable(Exception):
    """The adapter cannot be merged weight by weight; the text says why."""


class Weights:
    """Weights of a model folder in `dtype` (one of models.DTYPES), as transformers would load them.

    `dequantized`: settings of the quantization whose rounding the linear layers get (bitsandbytes' names), None for
    none: an adapter of QLoRA was trained beside weights that were rounded so.
    """

    def __init__(self, folder: Path, dtype: str, dequantized: dict | None = None):
        self.checkpoint = Checkpoint(folder)
        self.dtype = dtype
        self.quantization = dequantized
        self.packed: set[str] = set()
        if dequantized:
            model = hollow.causal_lm(hollow.config_of(folder), dtype)
            self.packed = {f"{name}.weight" for name in hollow.packed_layers(model)}

    def tensor(self, name: str):
        import torch

        weight = self.checkpoint.tensor(name).to(getattr(torch, self.dtype))
        return rounded(weight, self.quantization) if name in self.packed else weight

    def unchanged(self, name: str) -> bool:
        """Whether the tensor is the file's, byte for byte."""
        return name not in self.packed and DTYPES[self.checkpoint.entries[name].dtype] == self.dtype


class Merged(Weights):
    """The same with an adapter merged into them.

    Raises Unmergeable for what peft alone can merge, ForgeError when base and adapter do not belong together.
    """

    def __init__(self, folder: Path, adapter: Path, dtype: str, dequantized: dict | None = None):
        super().__init__(folder, dtype, dequantized)
        refuse_more_than_lora(adapter)
        model = placeholder(folder, dtype)
        if model._keep_in_fp32_modules:
            raise Unmergeable("some of the base's modules stay in float32")
        adapted = models.with_adapter(model, adapter)
        if getattr(adapted.peft_config["default"], "lora_bias", False):
            raise Unmergeable("the adapter has biases of its own")
        self.layers = layers_of(adapted)
        self.refuse_other_names()
        models.give_memory_back()  # the adapter's file was in memory beside the adapter

    def refuse_other_names(self) -> None:
        """The base's files must hold each changed weight under the name and in the shape that the model has it."""
        unusual = self.checkpoint.unusual()
        if unusual:
            raise Unmergeable(f"the base holds {unusual}")
        for name, layer in self.layers.items():
            entry = self.checkpoint.entries.get(name)
            if entry is None or entry.shape != tuple(layer.get_base_layer().weight.shape):
                raise Unmergeable(f"the adapter changes {name}, which the base's files do not hold in that shape")
        if not self.layers:
            raise ForgeError(
                "the adapter changes no layer of this base", "train again: make redo PHASE=train", INTEGRITY
            )

    def unchanged(self, name: str) -> bool:
        return name not in self.layers and super().unchanged(name)

    def tensor(self, name: str):
        """The weight as merge_and_unload would leave it. Raises ForgeError (6) when it is not finite."""
        import torch

        weight = super().tensor(name)
        layer = self.layers.get(name)
        if layer is None:
            return weight
        base = layer.get_base_layer()
        kept = base.weight
        base.weight = torch.nn.Parameter(weight, requires_grad=False)
        try:
            layer.merge()
            weight = base.weight.data
        finally:
            layer.merged_adapters.clear()
            base.weight = kept
        if not all(torch.isfinite(part).all() for part in weight.split(FINITE_ROWS)):
            raise ForgeError(f"{name} is not finite after the merge", "train again, with a lower rate", INTEGRITY)
        return weight


def result(layout: Layout, facts: dict) -> Weights:
    """The merged weights of a project, `facts` being the merge's: read where they were kept, else merged anew."""
    if facts["kept"]:
        return Weights(layout.merged, facts["dtype"])
    return Merged(layout.base, layout.adapter, facts["dtype"], facts["rounding"])


def refuse_more_than_lora(adapter: Path) -> None:
    """An adapter may bring whole modules, biases or single tokens along (peft's modules_to_save and its like)."""
    for name in models.tensor_shapes(adapter):
        if ".lora_" not in name:
            raise Unmergeable(f"the adapter replaces {name.removeprefix('base_model.model.')}")


def layers_of(adapted) -> dict:
    """The layers that carry a LoRA, by the name of their weight in the base's files."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            if not isinstance(module, LoraLayer) or not hasattr(module.get_base_layer(), "weight"):
                raise Unmergeable(f"{name} is a {type(module).__name__}")
            found[f"{name}.weight"] = module
    return found


def placeholder(folder: Path, dtype: str):
    """The folder's model, each weight one number expanded to its shape: all names and shapes, hardly any memory."""
    model = hollow.causal_lm(hollow.config_of(folder), dtype)
    shrink(model)
    return model.eval()


def shrink(model) -> None:
    """Every weight becomes one number, expanded to its shape, on the CPU."""
    import torch

    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                one = torch.ones(1, dtype=weight.dtype).expand(weight.shape)
                module._parameters[name] = torch.nn.Parameter(one, requires_grad=False)


def rounded(weight, quantization: dict):
    """The weight after it was quantized to 4 bits and back, by bitsandbytes."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight,
        quant_type=quantization["bnb_4bit_quant_type"],
        compress_statistics=quantization["bnb_4bit_use_double_quant"],
    )
    return functional.dequantize_4bit(packed, state)
