"""The processes that train one adapter together, and how they agree. Alone, every question answers itself.

A launcher (accelerate launch, torchrun) says by environment variables which of how many a process is. Rank 0, the
main one, does what a phase does; the others only compute. Imports torch where it talks to the others, not before.
"""

import datetime
import os
from collections.abc import Callable

from forge import errors, models
from forge.errors import ENVIRONMENT, ForgeError

PATIENCE = datetime.timedelta(minutes=30)  # as transformers' own: the main process hashes 15 GB in half a minute


def launched() -> bool:
    """Whether a launcher started this process: RANK alone may stem from a cluster's scheduler."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def world_here() -> int:
    """How many of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1


def is_main() -> bool:
    return rank() == 0


def sharded() -> bool:
    """Whether each process holds a part of the weights (FSDP), not all of them (DDP)."""
    return launched() and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join() -> None:
    """Meet the others. Raises ForgeError (2) for more processes than GPUs."""
    models.prepare(repeats=True)
    import torch
    from accelerate import PartialState

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if gpus is not None and world_here() > gpus:
        raise ForgeError(
            f"{world_here()} processes were started on this machine, which has {gpus} GPUs",
            "set num_processes of the launch file to the number of GPUs, all machines together",
        )
    if gpus is None and sharded():
        shard_on_cpus()
    PartialState(cpu=gpus is None, timeout=PATIENCE)


def shard_on_cpus() -> None:
    """Let accelerate shard on CPUs, too.

    accelerate 1.15.0 takes an FSDP plugin on GPUs and their like alone, and would train whole copies, silently. This
    is how sharding is tested on a machine without a GPU.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def begin_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def any_of(flag: bool) -> bool:
    """Whether it is true on any process. All wait here for all."""
    if not launched():
        return flag
    import torch

    seen = torch.tensor([int(flag)], device=models.device())
    torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
    return bool(seen.item())


def barrier() -> None:
    """Wait until all have come here."""
    any_of(False)


def from_main(value: object = None) -> object:
    """What the main process gives; what the others give is not looked at."""
    if not launched():
        return value
    import torch

    told = [value if is_main() else None]
    torch.distributed.broadcast_object_list(told, src=0)
    return told[0]


def on_main(function: Callable, *given: object) -> object:
    """What `function(*given)` returns on the main process, told to all; an error of its is raised on all."""
    if not launched():
        return function(*given)
    value, failure = None, None
    if is_main():
        try:
            value = function(*given)
        except Exception as error:  # else the others would wait for an answer
            failure = errors.explained(error)
    value, failure = from_main((value, failure))
    if failure is not None:
        raise failure
    return value


def is_first_to_fail() -> bool:
    """Whether this process is the first to ask; the others' failures are its failure's consequences.

    Asked of the store behind the process group: a collective would hang, for the others may be in another one.
    """
    import torch

    try:
        return torch.distributed.distributed_c10d._get_default_store().add("forge/failures", 1) == 1
    except (RuntimeError, ValueError):  # the store or the group is gone: better said twice than never
        return True


def lost(error: BaseException) -> ForgeError | None:
    """How the end of another process shows here; None for any other error."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    if not launched() or not isinstance(error, RuntimeError) or not any(sign in str(error) for sign in signs):
        return None
    return ForgeError(
        "another process of this training ended",
        "look at what that one printed; where it printed nothing, memory may have run out",
        ENVIRONMENT,
    )
