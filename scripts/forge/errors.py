"""The errors that a user is meant to read: one line of cause, one line of remedy, one exit code."""

import re

OK = 0
BAD_INPUT = 2
GATE_NOT_PASSED = 3
DATA_REFUSED = 4
LOCKED = 5
INTEGRITY = 6
ENVIRONMENT = 7
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again and it goes on


class ForgeError(Exception):
    """A problem that the user can mend.

    `cause` and `remedy` are one line each, `code` is one of the exit codes above. `told`: another process says it.
    """

    told = False

    def __init__(self, cause: str, remedy: str, code: int = BAD_INPUT):
        super().__init__(cause)
        self.cause = one_line(cause)
        self.remedy = one_line(remedy)
        self.code = code

    def __reduce__(self) -> tuple:
        """As exceptions are handed from one process to another: with all that they were made of."""
        return type(self), (self.cause, self.remedy, self.code)


NO_MEMORY = re.compile("can't allocate memory|cannot allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """PyTorch has an exception of its own for a GPU; other libraries, and the loader of libraries, say it in words."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or bool(NO_MEMORY.search(str(error)))


def one_line(text: str) -> str:
    """Collapse every run of whitespace, so that a message stays on one line."""
    return " ".join(str(text).split())
