"""Errors: one line of cause, one of remedy, and the exit code that the tables promise."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from forge import errors
from forge.errors import ForgeError

ROOT = Path(__file__).resolve().parents[1]


def test_exit_codes_are_the_published_ones():
    names = (
        "OK",
        "BAD_INPUT",
        "GATE_NOT_PASSED",
        "DATA_REFUSED",
        "LOCKED",
        "INTEGRITY",
        "ENVIRONMENT",
        "INTERRUPTED",
    )
    assert [getattr(errors, name) for name in names] == [0, 2, 3, 4, 5, 6, 7, 75]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\n  b\tc", "a b c"), ("  a  ", "a"), ("a\r\nb", "a b"), ("a\u2028b\u0085c", "a b c"), ("", "")],
)
def test_one_line(text, line):
    assert errors.one_line(text) == line


def test_cause_and_remedy_are_one_line_each():
    error = ForgeError("it\nbroke", "mend\nit")
    assert (error.cause, error.remedy, error.code) == ("it broke", "mend it", 2)


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "the disk is full: a/b", 7),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), "the disk is full: a/b", 7),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied", 7),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system", 7),
        (OSError(errno.EIO, "Input/output error", "a/b"), "[Errno 5] Input/output error: 'a/b'", 7),
    ],
)
def test_errors_of_the_system(error, cause, code):
    found = errors.from_os_error(error)
    assert (found.cause, found.code) == (cause, code)
    assert found.remedy


def test_too_little_gpu_memory_names_the_settings():
    import torch

    found = errors.explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert found.code == 7
    assert found.cause == "out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert found.remedy == "set training.per_device_train_batch_size to 1 or lower training.max_length"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_the_environments(error):
    found = errors.explained(error)
    assert found.code == 7 and found.cause.startswith("out of memory")


@pytest.mark.parametrize(
    "error", [ImportError("x.so: failed to map segment from shared object"), RuntimeError("can't start new thread")]
)
def test_a_limit_may_be_of_memory_or_not(error):
    found = errors.explained(error)
    assert (found.code, found.cause) == (7, str(error))
    assert not errors.out_of_memory(error)


def test_an_unexpected_error_is_one_short_line():
    found = errors.unexpected(ValueError("word\n" * 1000))
    assert found.code == 1
    assert len(found.cause) < 330
    assert found.cause.startswith("ValueError: word word ")


GUARD = """
import sys
sys.path.insert(0, "scripts")
from forge import command
from forge.errors import ForgeError

def body():
    {body}

command.guard(body, debug={debug})
"""


def guarded(body: str, debug: bool = False) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", GUARD.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip(), debug=debug)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("body", "code", "errors"),
    [
        ("pass", 0, ""),
        ('raise ForgeError("cause", "remedy")', 2, "FAIL cause\n  do remedy\n"),
        ('raise ForgeError("cause", "remedy", 4)', 4, "FAIL cause\n  do remedy\n"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
            75,
            "FAIL interrupted\n  do run the same command again: it goes on\n",
        ),
        ("raise KeyboardInterrupt", 75, "FAIL interrupted\n  do run the same command again: it goes on\n"),
        ("raise MemoryError", 7, "FAIL out of memory\n  do close other programs or add swap space\n"),
        (
            "1 / 0",
            1,
            "FAIL ZeroDivisionError: division by zero\n"
            "  do this is not expected: run again with --debug and report what it prints\n",
        ),
    ],
)
def test_guard(body, code, errors):
    done = guarded(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", errors)


def test_an_interruption_before_the_guard_is_no_traceback():
    """A Ctrl-C while a script imports what it needs."""
    code = "import forge, os, signal; os.kill(os.getpid(), signal.SIGINT); import forge.phase; print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_second_interruption_does_not_break_the_clearing_up():
    """make hands on a SIGTERM that the script had already: the folder is removed nevertheless, and it is said once."""
    done = guarded("""
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            print("cleared up")
    """)
    assert (done.returncode, done.stdout) == (75, "cleared up\n")
    assert done.stderr == "FAIL interrupted\n  do run the same command again: it goes on\n"


def test_an_interruption_later_than_that_ends_what_hangs():
    done = guarded("""
        import os, signal, time
        command.GRACE = 0.1
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            print("never")
    """)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "FAIL interrupted\n  do run the same command again: it goes on\n"


def test_guard_prints_what_was_said_before_the_error():
    done = guarded('print("said"); raise ForgeError("cause", "remedy")')
    assert (done.returncode, done.stdout) == (2, "said\n")


def test_guard_ends_at_once_whatever_threads_run():
    done = guarded("import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()")
    assert done.returncode == 0


def test_guard_shows_the_traceback_on_demand():
    done = guarded('raise ForgeError("cause", "remedy")', debug=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("\nFAIL cause\n  do remedy\n")


def test_a_cause_that_the_terminal_cannot_show():
    """A file name that is no UTF-8, or a terminal that is not: the code stays, the line is shown somehow."""
    done = guarded('raise ForgeError("caf\\udce9", "remedy")')
    assert done.returncode == 2
    assert done.stderr.endswith("\n  do remedy\n")
