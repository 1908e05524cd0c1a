"""Training in one process or in several: alone, as one of those that a launcher started, or by starting one.

`training.launch` names an accelerate config file. The script then starts `accelerate launch` with it on itself and
waits: the launcher makes every exit code 1 and every failure a page of its own words, so each process leaves its
outcome in a file, and the one that was started by hand or by make ends as rank 0 did. Under a launcher of the user's
own the script is one of the processes at once.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from forge import errors, files, manifest, phase, sources
from forge.errors import ENVIRONMENT, INTERRUPTED, OK, ForgeError
from forge.training import ranks

OUTCOMES = "FORGE_OUTCOMES"  # environment variable: the folder where the processes leave what became of them
LOG = Path("logs/train.launcher.log")
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def execute(run: phase.Run, work: phase.Work) -> None:
    """Run the phase. Raises what it raises in one process, whatever the launcher made of it."""
    if ranks.launched() or OUTCOMES in os.environ:
        as_one_of_several(run, work)
    elif run.config.values.training.launch and needs_work(run):
        by_launcher(run, Path(run.config.values.training.launch))
    else:
        phase.alone(run, work)


def needs_work(run: phase.Run) -> bool:
    """Where nothing has changed no launcher is started: it takes seconds to say so."""
    outside = sources.outside(run.phase.name, run.config)
    return run.arguments.force or manifest.why_stale(run.phase, run.config, outside) is not None


# -- as one of the processes ----------------------------------------------------------------------------------


def as_one_of_several(run: phase.Run, work: phase.Work) -> None:
    try:
        if not ranks.launched():  # a launch file with one process and no group
            phase.alone(run, work)
            return
        ranks.join()
        (lead if ranks.is_main() else follow)(run, work)
        ranks.barrier()  # one that ends while another still reads what it said is taken for lost
    except (Exception, KeyboardInterrupt) as error:
        failure = ranks.lost(error) or errors.explained(error)
        leave(failure)
        raise failure from error


def lead(run: phase.Run, work: phase.Work) -> None:
    """The main process: all that a phase does, and word to the others whether there is work."""
    told = False

    def working(run: phase.Run) -> dict:
        nonlocal told
        told = True
        ranks.from_main((run.inputs, run.sources))
        require_one_disk(run)
        return work(run)

    try:
        phase.alone(run, working)
    except (Exception, KeyboardInterrupt) as error:
        if not told:
            with contextlib.suppress(RuntimeError):  # they are gone already
                ranks.from_main(errors.explained(error))
                ranks.barrier()
        raise
    if not told:
        ranks.from_main(None)


def follow(run: phase.Run, work: phase.Work) -> None:
    """Any other process: the work alone. It takes no lock, reads no record and says nothing."""
    told = ranks.from_main()
    if isinstance(told, ForgeError):
        ranks.barrier()
        raise told
    if told is None:
        return
    run.quiet = True
    run.inputs, run.sources = told
    require_one_disk(run)
    work(run)


def require_one_disk(run: phase.Run) -> None:
    """All processes read the same base and rows, and go on from the same checkpoint. Raises ForgeError (7)."""
    folder = run.layout.checkpoints
    sign = folder / f".{ranks.from_main(os.getpid())}"
    ranks.on_main(folder.mkdir, 0o777, True, True)
    ranks.on_main(sign.touch)
    missing = ranks.any_of(not sign.exists())
    ranks.on_main(sign.unlink)
    if missing:
        raise ForgeError(
            f"{folder} is not the same folder on all machines",
            "put the checkout on a disk that all of them share",
            ENVIRONMENT,
        )


def leave(failure: ForgeError) -> None:
    """Say what went wrong once: to the process that started the launcher, or by the first that failed."""
    first = not ranks.launched() or ranks.is_first_to_fail()
    folder = os.environ.get(OUTCOMES)
    failure.told = bool(folder) or not first
    if folder:
        again = getattr(failure, "again", False)
        content = {**vars(failure), "first": first, "again": again}
        files.write_json(Path(folder) / f"{ranks.rank():06d}.json", content)


# -- as the one that starts them ------------------------------------------------------------------------------


def by_launcher(run: phase.Run, launch_file: Path) -> None:
    """Start accelerate's launcher on this script and end as the processes did.

    Raises ForgeError: theirs, or (2) for a launch file that is not there, (7) for a launcher that fails by itself.
    """
    if not launch_file.is_file():
        raise ForgeError(
            f"training.launch names {launch_file}, which is not there",
            "name a file of config/accelerate/, or set training.launch to null",
        )
    while True:
        with tempfile.TemporaryDirectory(prefix="forge-") as folder:
            code, asked = launch(launch_file, Path(folder), run.arguments.debug)
            outcome = read_outcome(Path(folder))
        if outcome is None and code == OK:
            return
        # The launcher stops the others when one was killed: nobody asked for that.
        stopped = outcome is not None and outcome["code"] == INTERRUPTED and not outcome["again"]
        if outcome is None or (stopped and not asked and was_killed()):
            raise launcher_failed(code)
        if not outcome["again"]:
            raise ForgeError(outcome["cause"], outcome["remedy"], outcome["code"])
        run.say(outcome["cause"])


def launch(launch_file: Path, folder: Path, debug: bool) -> tuple[int, bool]:
    """The launcher's exit code, and whether somebody asked to stop. Ctrl-C and SIGTERM go to the processes, which save
    a checkpoint and stop.

    The launcher has a session of its own: a Ctrl-C that reached it, too, would have it kill them after 30 s, which
    may be less than a step. It ends when this process does, however that ends.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_file), *sys.argv]
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command,
            env={**os.environ, OUTCOMES: str(folder)},
            stdin=subprocess.DEVNULL,
            stderr=None if debug else log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        asked = False
        while True:
            try:
                return child.wait(), asked
            except KeyboardInterrupt:
                asked = True
                ask_to_stop(child)


def die_with_parent() -> None:
    """SIGTERM when the parent is gone. Linux only; elsewhere the launcher is left to end by itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def ask_to_stop(child: subprocess.Popen) -> None:
    """SIGTERM to the processes; to the launcher where there are none yet."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(child.pid)
        for process in launcher.children() or [launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()


def read_outcome(folder: Path) -> dict | None:
    """What became of the processes on this machine: of the first that failed, else of the lowest rank."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return min(found, key=lambda item: not item["first"], default=None)


def launcher_failed(code: int) -> ForgeError:
    """Nobody left word: the launch file is wrong, a process was killed, or somebody asked to stop before it began."""
    if code == -signal.SIGTERM:
        return ForgeError("interrupted", "run the same command again: it goes on", INTERRUPTED)
    last = next((line.strip() for line in reversed(logged()) if line.strip()), "it said nothing")
    if was_killed():
        return ForgeError(
            "a training process was killed (signal 9)",
            f"see whether memory ran out (dmesg), and {LOG}; the same command goes on",
            ENVIRONMENT,
        )
    return ForgeError(f"the launcher ended with code {code}: {last[:300]}", f"see {LOG}", ENVIRONMENT)


def was_killed() -> bool:
    """Whether the launcher reports a process that ended by signal 9."""
    return any("exitcode" in line and "-9" in line for line in logged())


def logged() -> list[str]:
    return LOG.read_text(encoding="utf-8", errors="replace").split("\n") if LOG.is_file() else []
