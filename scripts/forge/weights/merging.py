"""Base plus adapter, one weight at a time: peft's own layer does the arithmetic of each, so the result is that of its
merge_and_unload to the last bit, without the model in memory.

The model is built with weights that take no memory: each is one number, expanded to its shape. On the CPU, for on the
meta device peft takes the adapter there, too, and its merge changes nothing, without a word. For a moment a layer
gets its true weight, merges, and hands the result over.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from forge import models
from forge.errors import INTEGRITY, ForgeError
from forge.graph import Layout
from forge.weights import hollow
from forge.weights.checkpoint import DTYPES, Checkpoint

ADAPTER = "default"  # peft's name of the only one
# Numbers of a weight that are merged at once. Their change takes 16 MB twice, in 32 bits: less than malloc maps (see
# models.return_memory), so the same memory is used again. 7B, merged as whole weights, took 92 s instead of 51: half of
# the processors' time went into zeroing new pages.
AT_ONCE = 1 << 22


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

    def rows(self, name: str) -> Iterator:
        """The same tensor's rows in their order, some at a time where its kind allows that."""
        shape = self.checkpoint.entries[name].shape
        if name in self.packed or len(shape) != 2:
            yield self.tensor(name)
            return
        for rows in blocks(shape):
            yield self.some(name, rows)

    def some(self, name: str, rows: slice):
        """Rows of a matrix that is not packed."""
        import torch

        entry = self.checkpoint.entries[name]
        width = entry.size // entry.shape[0]
        raw = self.checkpoint.read(name, rows.start * width, (rows.stop - rows.start) * width)
        read = raw.view(getattr(torch, DTYPES[entry.dtype])).reshape(-1, *entry.shape[1:])
        return read.to(getattr(torch, self.dtype))

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
        weight = super().tensor(name)
        layer = self.layers.get(name)
        if layer is None:
            return weight
        if not by_rows(layer):
            return finite(merged(layer, weight), name)
        for rows in blocks(weight.shape):
            weight[rows] = finite(merged(layer, weight[rows], rows), name)
        return weight

    def rows(self, name: str) -> Iterator:
        layer = self.layers.get(name)
        if layer is None:
            yield from super().rows(name)
        elif name in self.packed or not by_rows(layer):
            yield self.tensor(name)
        else:
            for rows in blocks(self.checkpoint.entries[name].shape):
                yield finite(merged(layer, self.some(name, rows), rows), name)


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """A matrix' rows in parts of like size, each of AT_ONCE numbers at most where a row is no longer than that.

    Of like size, because a product with one row alone is summed up in another way than one with many.
    """
    count = min(shape[0], math.ceil(shape[0] * shape[1] / AT_ONCE))
    return [slice(shape[0] * part // count, shape[0] * (part + 1) // count) for part in range(count)]


def by_rows(layer) -> bool:
    """Whether rows of the weight can be merged without the others: not where their norm counts (DoRA), nor in a layer
    whose weight is transposed, nor in embeddings."""
    from peft.tuners.lora import Linear

    return type(layer) is Linear and not layer.fan_in_fan_out and ADAPTER not in layer.lora_variant


def merged(layer, weight, rows: slice = slice(None)):
    """These rows of a layer's weight as merge_and_unload would leave them; `weight` itself may be changed."""
    import torch

    base, factor = layer.get_base_layer(), layer.lora_B[ADAPTER] if rows != slice(None) else None
    kept, whole = base.weight, factor.weight if factor is not None else None
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    if factor is not None:
        factor.weight = torch.nn.Parameter(whole[rows], requires_grad=False)
    try:
        layer.merge()
        return base.weight.data
    finally:
        layer.merged_adapters.clear()
        base.weight = kept
        if factor is not None:
            factor.weight = whole


def finite(weight, name: str):
    """The weight itself. Its least and greatest number tell as much as torch.isfinite of all, in a fortieth of the
    time."""
    import torch

    if not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
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
