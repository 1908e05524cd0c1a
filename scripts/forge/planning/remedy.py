"""Which setting to change where training does not fit: the first that makes it fit, with its value."""

import copy
from collections.abc import Callable, Iterator

LEAST_TOKENS, LEAST_RANK = 128, 4

Change = dict[str, object]  # dotted key -> value


def search(values: dict, gpu: bool, peak: Callable[[dict], int], free: int) -> tuple[Change, int] | None:
    """The change after which the peak is within what is free, and that peak; None when none suffices.

    `values`: the whole config; `peak`: bytes that training takes with such values. One kind of change is tried after
    the other, what costs least first; where none is enough alone, they are added up in that order.
    """
    kinds = [list(kind) for kind in changes(values, gpu)]
    for kind in kinds:
        for change in kind:
            needed = peak(changed(values, change))
            if needed <= free:
                return change, needed
    summed: Change = {}
    for kind in kinds:
        for change in kind[-1:]:
            summed |= change
        needed = peak(changed(values, summed)) if len(summed) > 1 else free + 1
        if needed <= free:
            return summed, needed
    return None


def changes(values: dict, gpu: bool) -> Iterator[Iterator[Change]]:
    """Kinds of changes, each from the smallest on: time, then the optimizer's rounding, then length, then rank."""
    yield checkpointing(values)
    yield fewer_rows(values)
    yield other_optimizer(values, gpu)
    yield packed(values)
    yield shorter(values)
    yield lower_rank(values)


def checkpointing(values: dict) -> Iterator[Change]:
    if values["training"]["gradient_checkpointing"] is False:  # auto has tried it
        yield {"training.gradient_checkpointing": True}


def fewer_rows(values: dict) -> Iterator[Change]:
    """Half the rows at once and twice the batches a step, for every stage alike."""
    places = {"training": values["training"]}
    if set(values["training"]["stages"]) - {"sft"}:
        places["training.preference"] = values["training"]["preference"]
    least = {"training": 1, "training.preference": 2 if "kto" in values["training"]["stages"] else 1}
    rows = {name: place["per_device_train_batch_size"] for name, place in places.items()}
    batches = {name: place["gradient_accumulation_steps"] for name, place in places.items()}
    while any(rows[name] // 2 >= least[name] for name in rows):
        change: Change = {}
        for name in rows:
            if rows[name] // 2 >= least[name]:
                total, rows[name] = rows[name] * batches[name], rows[name] // 2
                batches[name] = -(-total // rows[name])
            if rows[name] != places[name]["per_device_train_batch_size"]:
                change[f"{name}.per_device_train_batch_size"] = rows[name]
                change[f"{name}.gradient_accumulation_steps"] = batches[name]
        yield change


def other_optimizer(values: dict, gpu: bool) -> Iterator[Change]:
    if gpu and values["training"]["optim"] not in ("auto", "paged_adamw_8bit"):
        yield {"training.optim": "paged_adamw_8bit"}


def packed(values: dict) -> Iterator[Change]:
    quantization = values["quantization"]
    if not quantization["load_in_4bit"]:
        yield {"quantization.load_in_4bit": True, "quantization.unpack": False}
    elif quantization["unpack"] is True:
        yield {"quantization.unpack": False}


def shorter(values: dict) -> Iterator[Change]:
    tokens = values["training"]["max_length"] // 2
    while tokens >= LEAST_TOKENS:
        change: Change = {"training.max_length": tokens}
        if values["data"]["max_tokens"] > tokens:
            change["data.max_tokens"] = tokens
        yield change
        tokens //= 2


def lower_rank(values: dict) -> Iterator[Change]:
    rank = values["lora"]["r"] // 2
    while rank >= LEAST_RANK:
        yield {"lora.r": rank}
        rank //= 2


def changed(values: dict, change: Change) -> dict:
    """A copy of the config's values with other ones in some places."""
    copied = copy.deepcopy(values)
    for dotted, value in change.items():
        *parents, last = dotted.split(".")
        place = copied
        for part in parents:
            place = place[part]
        place[last] = value
    return copied


def words(change: Change) -> str:
    """`set training.max_length to 256 and data.max_tokens to 256`"""
    shown = [f"{key} to {str(value).lower() if isinstance(value, bool) else value}" for key, value in change.items()]
    return "set " + " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
