"""Work by several processes, its results in order: the same output however many there are."""

import collections
import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator

from forge.errors import ENVIRONMENT, ForgeError

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
UNDER_WAY = 3  # tasks a worker that are handed out at once: enough to keep it busy, few enough to keep memory flat

_function: Callable | None = None


def workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered(function: Callable, items: Iterable, count: int) -> Iterator:
    """`function(item)` for every item, in their order, by `count` forked processes (one: in this process).

    What `function` holds is shared with the processes, not copied; items and results are pickled between them and
    never stored. Raises ForgeError (7) when a process was killed.
    """
    global _function
    if count <= 1:
        yield from map(function, items)
        return
    _function = function
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(count, context, initializer=_begin, initargs=(os.getpid(),))
    window: collections.deque = collections.deque()
    try:
        for item in items:
            window.append(pool.submit(_call, item))
            if len(window) >= UNDER_WAY * count:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ForgeError(
            "a worker process was killed, most often for lack of memory",
            "close other programs or add swap space, then run the same command again",
            ENVIRONMENT,
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _call(item: object) -> object:
    return _function(item)


def _begin(parent: int) -> None:
    """A worker leaves Ctrl-C to its parent and never outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
