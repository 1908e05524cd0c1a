"""One training step, replayed on tensors that have shapes and no memory: what it would hold at most.

Autograd keeps what the backward pass needs; which tensors these are depends on the architecture, on peft's and
bitsandbytes' layers, autocast and the attention. Instead of a formula for each, the step itself is run, forward and
backward, on fake tensors, and a ledger adds up every storage that is made and takes off what is freed.
"""

import contextlib
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from forge.planning.batch import Batch
from forge.training import attention, base
from forge.training.choices import Choices
from forge.weights import hollow

FUSED = "planned"  # the attention of a GPU: keeps query, key, value, output and one number a row
TILE = (4096, 32768)  # tokens and words that trl's head projects at once on a GPU


class Ledger(TorchDispatchMode):
    """`live` bytes of the storages that operations made, and the `most` there were at any time."""

    def __init__(self, there: list[torch.Tensor]):
        """`there`: tensors that were made before and are not counted, however often they are viewed."""
        super().__init__()
        self.known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in there}
        self.live = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.namespace == "aten":  # most of the others only ask for a tensor's device
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, torch.Tensor):
                    self.note(tensor)
        return made

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.known:
            return
        size = storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.live -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, forget)
        self.live += size
        self.most = max(self.most, self.live)


class Replay:
    """A base with its adapter, ready to be replayed with one batch after the other.

    `place`: a context in which tensors are fake; with one that does nothing, and a real model, the step is real.
    """

    def __init__(self, model, choices: Choices, place: contextlib.AbstractContextManager):
        self.model, self.choices, self.place = model, choices, place
        self.head = model.get_base_model().get_output_embeddings()
        if choices.gradient_checkpointing:
            # The state of the random numbers is 5 KB a layer, and reading it is no operation on tensors.
            model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            model.enable_input_require_grads()
        model.train()

    @classmethod
    def of(cls, config, lora: dict, choices: Choices) -> "Replay":
        """For a base by its config, and an adapter as the config's section `lora` has it."""
        attention.register()
        register()
        fused = choices.device != "cpu" and choices.attention != "eager"
        model = hollow.causal_lm(plain(config), choices.dtype, FUSED if fused else choices.attention)
        if choices.four_bit and not choices.unpack:
            pack(model, getattr(torch, choices.dtype))
        model = hollow.adapted(model, lora)
        base.in_fp32(model)
        fake = FakeTensorMode()
        with fake:
            settle(model)
        return cls(model, choices, fake)

    def peak(self, batch: Batch, accumulated: bool) -> int:
        """Bytes that a step holds at most, beside weights and optimizer. `accumulated`: gradients are there already."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        ledger = Ledger([*self.model.parameters(), *self.model.buffers()])
        with self.place, ledger, amp(self.choices):
            if accumulated:
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
            self.loss(batch).backward()
        for parameter in trained:
            parameter.grad = None
        return ledger.most

    def loss(self, batch: Batch):
        if self.choices.device != "cpu":
            return self.tiled(batch)
        return self.wanted(batch) if batch.stage == "sft" else self.scored(batch)

    def wanted(self, batch: Batch):
        """As supervised.Trainer.compute_loss: logits where a loss is."""
        count = batch.targets if batch.packed else min(batch.targets, max(batch.lengths))
        places = torch.zeros(count, dtype=torch.long)
        with autocast(self.choices):
            logits = self.model(**inputs(batch), use_cache=False, logits_to_keep=places).logits
        logits = logits.float()
        labels = torch.zeros(logits.shape[:2], dtype=torch.long)
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 2

    def scored(self, batch: Batch):
        """As forge.training.packed and trl's DPOTrainer and KTOTrainer: tiles of logits where a label is."""
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as SIZE

        with autocast(self.choices):
            hidden = self.hidden(batch)
            labels = torch.zeros(len(hidden), dtype=torch.long)
            kept = ("entropy", "mean_logits", "is_top1")
            found = ChunkedLogProbFunction.apply(hidden, self.head.weight, None, labels, 1.0, SIZE, None, 1.0, kept)
        return functional.logsigmoid(found[0].sum())

    def tiled(self, batch: Batch):
        """As trl's trainers on a GPU: the positions that carry loss, in tiles."""
        with autocast(self.choices):
            return Tiles.apply(self.hidden(batch), self.head.weight).sum()

    def hidden(self, batch: Batch):
        """The last layer's output where a label is, as (tokens, width)."""
        backbone = self.model.get_base_model().base_model
        hidden = backbone(**inputs(batch), use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[: batch.targets * batch.answers].clone()


def inputs(batch: Batch) -> dict:
    """What a collator hands to the model: packed rows with their limits, or padded rows with a mask."""
    if not batch.packed:
        ids = torch.zeros((len(batch.lengths) * batch.answers, max(batch.lengths)), dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ids = torch.zeros((1, sum(batch.lengths) * batch.answers), dtype=torch.long)
    limits = Limits([0])
    for length in batch.lengths * batch.answers:
        limits.append(limits[-1] + length)
    return {
        "input_ids": ids,
        "position_ids": torch.zeros_like(ids),
        "cu_seq_lens_q": limits,
        "cu_seq_lens_k": limits,
        "max_length_q": max(batch.lengths),
        "max_length_k": max(batch.lengths),
    }


def settle(model) -> None:
    """Take a model from the meta device to one that claims to be the CPU: kernels and autocast go their usual way."""
    kept, made = list(model.parameters()), {}
    for old in kept:
        made[id(old)] = torch.nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
    for module in model.modules():
        for name, old in module._parameters.items():
            module._parameters[name] = None if old is None else made[id(old)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


class Limits(list):
    """Where packed rows begin and end: a fake tensor has no values."""

    def tolist(self) -> list[int]:
        return list(self)


def autocast(choices: Choices):
    return torch.autocast("cpu", dtype=getattr(torch, choices.dtype), enabled=choices.dtype != "float32")


@contextlib.contextmanager
def amp(choices: Choices):
    """peft asks whether autocast is on, and means that of a GPU."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", choices.device != "cpu" and choices.dtype != "float32")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def plain(config):
    """The config without rotary embeddings that look at the positions' values: they keep no other shapes."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        text.rope_parameters = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    return config


# -- 4-bit layers ---------------------------------------------------------------------------------------


def pack(model, dtype: torch.dtype) -> None:
    """Put a 4-bit layer wherever transformers would."""
    import bitsandbytes

    class Packed(bitsandbytes.nn.Linear4bit):
        """As bitsandbytes' own, which peft knows by its class: unpacks its weights anew in each direction."""

        def __init__(self, linear: torch.nn.Linear):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
            self.compute_dtype = dtype
            self.weight = torch.nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
            self.weight.compress_statistics, self.weight.quant_type, self.weight.quant_state = True, "nf4", None

        def forward(self, rows):
            shape = (self.out_features, self.in_features)
            return Unpack.apply(rows.to(dtype), shape, self.bias).to(rows.dtype)

    for name, layer in hollow.packed_layers(model).items():
        model.set_submodule(name, Packed(layer))
    model.is_loaded_in_4bit = True


class Unpack(torch.autograd.Function):
    """The memory of bitsandbytes' MatMul4Bit: nothing is saved, the whole weight is made twice."""

    @staticmethod
    def forward(ctx, rows, shape, bias):
        ctx.shape = shape
        return functional.linear(rows, rows.new_empty(shape), bias)

    @staticmethod
    def backward(ctx, grad):
        return torch.matmul(grad, grad.new_empty(ctx.shape)), None, None


# -- a GPU's kernels ------------------------------------------------------------------------------------


class Fused(torch.autograd.Function):
    """The memory of FlashAttention (Dao 2023): no scores; inputs, output and a number a row are kept."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Tiles(torch.autograd.Function):
    """The memory of trl's fused head: one tile of logits, forward and backward."""

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        tile = hidden.new_empty((min(len(hidden), TILE[0]), TILE[1]))
        return tile.new_empty((6, len(hidden)), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        hidden, _ = ctx.saved_tensors
        gradient = torch.empty_like(hidden, dtype=torch.float32)
        tile = hidden.new_empty((min(len(hidden), TILE[0]), TILE[1]))
        return gradient.to(tile.dtype), None


def planned(module, query, key, value, attention_mask, **_: object):
    return Fused.apply(query, key, value).transpose(1, 2), None


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(FUSED, planned)
    AttentionMaskInterface.register(FUSED, flash_attention_mask)
