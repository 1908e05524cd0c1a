"""The checks of `make env`, in their order, and how they are run.

`CHECKS` lists them with their level: critical and required ones decide whether the machine is ready, optional ones
never do.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from forge.environment import libraries, resources
from forge.environment.machine import CRITICAL, FAIL, OK, OPTIONAL, REQUIRED, SETUP, SKIP, WARN, Check, Machine, Result
from forge.errors import ForgeError, one_line


def examine(machine: Machine, debug: bool = False) -> dict:
    """Run all checks, print a row each, and return the report that --json writes."""
    # no check may wait for a network or draw a progress bar into the table
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    width = max(len(check.name) for check in CHECKS)
    print(f"{'check':{width}} {'level':8} {'state':5} what was found ({machine.name}, {machine.config.path})")
    rows = []
    for check in CHECKS:
        # the name first: if a library kills the process, the last line names it
        print(f"{check.name:{width}} {check.level:8} ", end="", flush=True)
        result = judge(check, machine, debug)
        print(f"{result.state:5} {result.detail}", flush=True)
        if result.remedy:
            print(f"{'':{width + 15}} do {result.remedy}", flush=True)
        rows.append({"name": check.name, "level": check.level, **asdict(result)})
    return summarize(machine, rows)


def judge(check: Check, machine: Machine, debug: bool = False) -> Result:
    """The check's result; a failure of whatever kind is one line, never a traceback (unless debug)."""
    try:
        with contextlib.nullcontext() if debug else quiet():
            return check.function(machine)
    except ForgeError as error:
        return Result(FAIL, error.cause, error.remedy)
    except ModuleNotFoundError as error:
        return Result(FAIL, one_line(error), SETUP)
    except (Exception, SystemExit) as error:
        if debug:
            traceback.print_exc()
        return Result(FAIL, f"{type(error).__name__}: {one_line(error)[:200]}", check.remedy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence both streams, also for C libraries, which write to the descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def summarize(machine: Machine, rows: list[dict]) -> dict:
    counts = {state: sum(row["state"] == state for row in rows) for state in (OK, WARN, SKIP, FAIL)}
    optional = sum(row["state"] == FAIL and row["level"] == OPTIONAL for row in rows)
    ready = counts[FAIL] == optional
    summary = (
        f"{counts[OK]} ok, {counts[WARN]} warning{'' if counts[WARN] == 1 else 's'}, {counts[SKIP]} skipped, "
        f"{counts[FAIL]} failed{f' ({optional} optional)' if optional else ''}: {'ready' if ready else 'NOT ready'}"
    )
    return {
        "config": str(machine.config.path),
        "needs_gpu": machine.needs_gpu,
        "ready": ready,
        "counts": counts,
        "summary": summary,
        "checks": rows,
    }


CHECKS = (
    Check("environment", CRITICAL, libraries.check_environment),
    Check(
        "torch",
        CRITICAL,
        libraries.check_torch,
        "run make setup TORCH=cpu, cu126 or cu130 (docs/environment.md says which)",
    ),
    Check("bitsandbytes", REQUIRED, libraries.check_bitsandbytes),
    Check("triton", REQUIRED, libraries.check_triton),
    Check("transformers", REQUIRED, libraries.check_transformers),
    Check("xformers", OPTIONAL, libraries.check_xformers, "pip uninstall xformers: nothing here needs it"),
    Check("llama-cpp-python", REQUIRED, libraries.check_llama),
    Check("tensorflow", OPTIONAL, libraries.check_tensorflow, "nothing: no phase uses it"),
    Check("peft", REQUIRED, libraries.check_peft),
    Check("trl", REQUIRED, libraries.check_trl),
    Check("datasets", REQUIRED, libraries.check_datasets),
    Check("pins", REQUIRED, libraries.check_pins),
    Check("converter", REQUIRED, libraries.check_converter),
    Check("ollama", OPTIONAL, libraries.check_ollama, "install it again from https://ollama.com/download"),
    Check("disk", REQUIRED, resources.check_disk, "check that the checkout's folder can be read"),
    Check("RAM", REQUIRED, resources.check_ram),
    Check("swap", OPTIONAL, resources.check_swap),
    Check(
        "VRAM",
        CRITICAL,
        resources.check_vram,
        "restart (under WSL: wsl --shutdown in Windows), then see what nvidia-smi says",
    ),
    Check("Hugging Face token", OPTIONAL, resources.check_token),
    Check("project folder", OPTIONAL, resources.check_folder, "cd to the checkout's root"),
    Check("clock", REQUIRED, resources.check_clock, "make the checkout's folder writable for you"),
    Check("WSL memory", OPTIONAL, resources.check_wsl_memory),
    Check("line endings", REQUIRED, resources.check_line_endings, "make the checkout's files readable for you"),
)
