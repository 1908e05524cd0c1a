"""What the scripts share. Imported by the scripts beside it, never run."""

import signal

VERSION = "0.1.0"

# Until command.guard is there to tell an interruption, the end by the signal says as much as an import's traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
