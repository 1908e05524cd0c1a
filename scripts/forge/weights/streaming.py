"""Running a model on the CPU whose weights come one module at a time and go again: it need not fit into memory.

accelerate's hooks put a module's weights in place when it is called and take them away after. All rows go through a
layer together, padded on the right, so every weight is read once for about TOKENS_AT_ONCE tokens.

It computes in 32-bit floats, so that only what is stored differs, and because many processors have no instructions for
16 bits: on one of them, with 2 cores, 2,000 tokens of a 7B took more than 10 minutes so. The vocabulary's matrices, 1.1
GB each there in 16 bits, are the only ones that would be too large: one is looked up as it is stored, the other
multiplied in pieces.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from forge import models
from forge.compare import Scorer, carries_loss, hugging_face
from forge.progress import Told, untold
from forge.weights import hollow, merging
from forge.weights.merging import Weights

TOKENS_AT_ONCE = 4096  # of padded rows; a layer of 7B takes 0.9 GB for them
WHOLE_IN_FLOAT32 = 2 * 10**9  # bytes of weights in 16 bits: a larger model that is held as a whole stays in its type


def scorer(weights: Weights, adapter: Path | None = None, told: Told = untold) -> Scorer:
    """Scorer (see forge.compare) of the weights' model on the CPU.

    `adapter`: a folder whose adapter is put on it, not merged; None for none. `told`: how many layers are computed. A
    model whose files name their weights otherwise than transformers does, or whose adapter brings more than LoRA, is
    held in memory as a whole.
    """
    try:
        model = streamed(weights, adapter)
    except merging.Unmergeable:
        if type(weights) is not Weights or weights.quantization:
            raise
        folder = weights.checkpoint.folder
        small = models.weight_bytes(folder) <= WHOLE_IN_FLOAT32
        whole = models.causal_lm(folder, "float32" if small else weights.dtype, where="cpu")
        return hugging_face(models.with_adapter(whole, adapter) if adapter else whole)

    layers = layers_of(model)

    def score(rows: list[dict]) -> Iterator[np.ndarray]:
        groups, steps = list(grouped(rows)), itertools.count(1)

        def computed(*_) -> None:  # torch takes anything else for the layer's output
            told(next(steps), len(groups) * len(layers))

        handles = [layer.register_forward_hook(computed) for layer in layers]
        try:
            for group in groups:
                yield from scored(model, group)
        finally:
            for handle in handles:
                handle.remove()

    return score


def layers_of(model) -> list:
    """The model's longest list of modules: its layers."""
    import torch

    return max((list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)


def grouped(rows: list[dict]) -> Iterator[list[dict]]:
    """Neighbours that together have at most TOKENS_AT_ONCE tokens, padding included."""
    group: list[dict] = []
    for row in rows:
        longest = max(len(item["input_ids"]) for item in [*group, row])
        if group and longest * (len(group) + 1) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def scored(model, rows: list[dict]) -> Iterator[np.ndarray]:
    """Log-probabilities of each row's tokens that carry loss; the head computes no others."""
    import torch

    places = [torch.from_numpy(carries_loss(row)) for row in rows]
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):  # what stands right of a row's end is seen by none of its tokens
        ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])

    def chosen(module, arguments):
        hidden = arguments[0]
        return (torch.cat([hidden[index, place] for index, place in enumerate(places)]),)

    handle = model.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits.float()
            for part in logits.split(256):
                part -= part.logsumexp(dim=-1, keepdim=True)
    finally:
        handle.remove()
    yield from (part.numpy() for part in logits.split([len(place) for place in places]))


def streamed(weights: Weights, adapter: Path | None = None):
    """The model on the CPU, its weights fetched from `weights` whenever a module is called."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if adapter is not None:
        merging.refuse_more_than_lora(adapter)
    config = hollow.config_of(weights.checkpoint.folder)
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    sources = fetched_by(model, weights)
    look_up_as_stored(model, weights.dtype)
    merging.shrink(model)
    if adapter is not None:
        model = models.with_adapter(model, adapter)
    multiply_in_pieces(model, sources, weights)
    attach(model, sources)
    return model.eval()


def look_up_as_stored(model, dtype: str) -> None:
    """The embeddings' rows are widened when they are looked up, and scaled then (Gemma's). Others stay as they are."""
    import torch

    table = model.get_input_embeddings()
    scale = getattr(table, "embed_scale", None)
    if type(table) is not torch.nn.Embedding and scale is None:
        return
    table.weight = torch.nn.Parameter(table.weight.to(getattr(torch, dtype)), requires_grad=False)

    def forward(ids):
        found = torch.nn.functional.embedding(ids, table.weight, table.padding_idx).float()
        return found if scale is None else found * scale

    table.forward = forward


def multiply_in_pieces(model, sources: dict[int, dict[str, Callable]], weights: Weights) -> None:
    """A head without an adapter fetches its own rows, some at a time, and no hook fetches them as a whole."""
    import torch

    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return
    [name] = sources.pop(id(head))["weight"].args

    def forward(hidden):
        logits, start = hidden.new_empty(*hidden.shape[:-1], head.out_features), 0
        for rows in weights.rows(name):
            logits[..., start : start + len(rows)] = hidden @ rows.float().T
            start += len(rows)
        return logits

    head.forward = forward


def fetched_by(model, weights: Weights) -> dict[int, dict[str, Callable]]:
    """For each module (by its id) its own weights' names, and what fetches each. Tied ones have one source."""
    unusual = weights.checkpoint.unusual()
    if unusual:
        raise merging.Unmergeable(f"the files hold {unusual}")
    one_of = {}  # of several names of a weight, the one that the files hold
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in weights.checkpoint.entries:
            one_of.setdefault(id(parameter), name)
    sources = {}
    for place, module in model.named_modules():
        own = {}
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in one_of:
                raise merging.Unmergeable(f"{place}.{name} is not in the base's files")
            own[name] = functools.partial(weights.tensor, one_of[id(parameter)])
        sources[id(module)] = own
    return sources


def attach(model, sources: dict[int, dict[str, Callable]]) -> None:
    """Hooks on every module with weights: fetched before it is called, gone after it.

    A layer with an adapter has one hook for all that is in it: DoRA looks at its base layer's weight from outside.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: set[int] = set()
    for module in list(model.modules()):
        if id(module) in inside:
            continue
        tuned = isinstance(module, BaseTunerLayer)
        found = dict(sources.get(id(module), {}))
        if tuned:
            base = module.get_base_layer()
            inside |= {id(part) for part in module.modules()}
            kept = {name: weight.data for name, weight in module.named_parameters()}
            found = {name: functools.partial(kept.get, name) for name in kept}
            found |= {f"base_layer.{name}": fetch for name, fetch in sources[id(base)].items()}
        if found:
            hook = AlignDevicesHook("cpu", offload=True, weights_map=Fetched(found), place_submodules=tuned)
            add_hook_to_module(module, hook)


class Fetched(Mapping):
    """Names and what fetches each, as a mapping from names to tensors."""

    def __init__(self, fetch: dict[str, Callable]):
        self.fetch = fetch

    def __getitem__(self, name: str):
        return self.fetch[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.fetch)

    def __len__(self) -> int:
        return len(self.fetch)
