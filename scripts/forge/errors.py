"""The errors that a user is meant to read: a cause, a remedy and an exit code; and any other error made into one."""

import errno
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


def explained(error: BaseException) -> ForgeError:
    """Any failure as a cause, a remedy and an exit code."""
    if isinstance(error, ForgeError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return ForgeError("interrupted", "run the same command again: it goes on", INTERRUPTED)
    if type(error).__name__ == "OutOfMemoryError":
        return ForgeError(
            f"out of GPU memory: {error}",
            "set training.per_device_train_batch_size to 1 or lower training.max_length",
            ENVIRONMENT,
        )
    if out_of_memory(error):
        said = one_line(error)[:200]
        return ForgeError(
            f"out of memory{': ' if said else ''}{said}", "close other programs or add swap space", ENVIRONMENT
        )
    if isinstance(error, OSError):
        return from_os_error(error)
    return unexpected(error)


def from_os_error(error: OSError) -> ForgeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ForgeError(
            f"the disk is full: {error.filename or ''}",
            "free some space and run the same command again",
            ENVIRONMENT,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ForgeError(
            f"{error.filename}: {error.strerror}",
            "check the owner and the permissions of that path",
            ENVIRONMENT,
        )
    return ForgeError(str(error), "run again with --debug to see where", ENVIRONMENT)


def unexpected(error: BaseException) -> ForgeError:
    if "No space left on device" in str(error):  # safetensors and torch raise errors of their own
        return from_os_error(OSError(errno.ENOSPC, ""))
    if "failed to map segment" in str(error) or "can't start new thread" in str(error):
        return ForgeError(
            one_line(error)[:300], "close other programs, or raise the limit of memory or threads", ENVIRONMENT
        )
    if isinstance(error, ModuleNotFoundError):
        return ForgeError(f"{error}", "run make setup", ENVIRONMENT)
    return ForgeError(
        f"{type(error).__name__}: {one_line(error)[:300]}",
        "this is not expected: run again with --debug and report what it prints",
        1,
    )
