"""What every script shares: the arguments, and failures as a cause, a remedy and an exit code."""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from forge.errors import OK, ForgeError, explained

GRACE = 2.0  # seconds


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that all scripts share; --help shows the script's docstring."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--config", default="config/training_config.yaml", help="the config file")
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


class Interrupt:
    """Handler of SIGINT and SIGTERM. What comes within GRACE of one that interrupted is the same wish again, sent by
    make or by an impatient hand, and must not break the clearing up."""

    def __init__(self):
        self.last = -math.inf

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if now - self.last > GRACE:
            self.last = now
            raise KeyboardInterrupt


def guard(body: Callable[[], None], debug: bool = False) -> None:
    """Run `body`, turn every failure into a cause, a remedy and an exit code, and end the process."""
    interrupt = Interrupt()
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as forge/__init__.py leaves it; nohup ignores it
        signal.signal(signal.SIGINT, interrupt)
    try:
        body()
        sys.stdout.flush()
        code = OK
    except BrokenPipeError:
        code = OK  # `make status | head`
    except (Exception, KeyboardInterrupt) as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it ends in any case
        code = fail(explained(error), debug)
    # Threads of torch and tokenizers must not hold up the end.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def fail(error: ForgeError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if not error.told:
        print(f"FAIL {error.cause}\n  do {error.remedy}", file=sys.stderr, flush=True)
    return error.code
