"""What every script shares: the arguments, and failures as a cause, a remedy and an exit code."""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable

from forge.errors import OK, ForgeError, explained


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that all scripts share; --help shows the script's docstring."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--config", default="config/training_config.yaml", help="the config file")
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


def guard(body: Callable[[], None], debug: bool = False) -> None:
    """Run `body`, turn every failure into a cause, a remedy and an exit code, and end the process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as forge/__init__.py leaves it; nohup ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        body()
        sys.stdout.flush()
        code = OK
    except BrokenPipeError:
        code = OK  # `make status | head`
    except (Exception, KeyboardInterrupt) as error:
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
