"""The frame around every phase script: lock, currentness, integrity, audit trail, record.

A script says what it does in its docstring (that is its --help), defines `work(run)` and ends with

    if __name__ == "__main__":
        phase.start(__doc__, "merge", work)

`work` fills `run.staging` and returns the facts that later phases need. The frame skips the work when the
output is current by content, checks every input's SHA-256 before it is used, writes the record last and
swaps the result in.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forge import archive, audit, command, config, files, graph, lineage, manifest, provenance, sources
from forge.errors import GATE_NOT_PASSED, INTERRUPTED, LOCKED, ForgeError, explained, one_line
from forge.progress import Told

PATIENCE = 10  # seconds that a phase is silent at most, where it counts what it does
OVERRIDE = "OVERRIDE_REASON"  # variable of the environment: why a verdict that is no PASS is overridden
GATE_FILES = ("verdict.json", "items.jsonl", "template")  # what a gate may leave beside its record


class Run:
    """One run of one phase.

    Attributes: `settings` (the config values this phase may see), `layout` (paths), `staging` (folder to
    fill), `inputs` (records of the phases it needs, by name), `arguments` (the command line), `quiet` (nothing is
    printed or logged: another process of the same run does it).
    """

    def __init__(self, phase: graph.Phase, configuration: config.Config, arguments: argparse.Namespace):
        self.phase = phase
        self.config = configuration
        self.layout = configuration.layout
        self.settings = configuration.view(phase.name)
        self.arguments = arguments
        self.record = phase.record(self.layout)
        self.inputs: dict[str, dict] = {}
        self.sources: str | None = None
        self.discarded: list[Path] = []
        self.hashes: dict[str, str] = {}  # of written files, where they were hashed on the way
        self.head: dict | None = None  # of the audit trail, when this run began
        self.quiet = False
        self.started = time.time()
        self.log_path = Path("logs") / f"{phase.name}.log"

    @property
    def shares_folder(self) -> bool:
        """True where the output lies beside those of other projects: files are moved in one by one."""
        return self.record.parent == self.layout.gguf_folder

    @property
    def staging(self) -> Path:
        if self.shares_folder:
            return self.layout.gguf_folder / f".{self.layout.name}.{self.phase.name}.partial"
        return files.staging_path(self.record.parent)

    def facts(self, phase: str) -> dict:
        return self.inputs[phase]["facts"]

    def say(self, text: str = "") -> None:
        """Print a line and keep it in logs/<phase>.log."""
        if self.quiet:
            return
        with contextlib.suppress(BrokenPipeError):  # `make train | head`: the work goes on
            print(text, flush=True)
        with contextlib.suppress(OSError):
            self.log_path.parent.mkdir(exist_ok=True)
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(text + "\n")

    def progress(self, what: str) -> Told:
        """What says how much of `what` is done when PATIENCE seconds have passed, and again."""
        last = time.monotonic()

        def told(done: int, of: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PATIENCE and done < of:
                last = time.monotonic()
                self.say(f"  {done} of {of} {what}")

        return told

    def discard_later(self, path: Path) -> None:
        """Remove this when the new output is in place, not before."""
        self.discarded.append(path)

    # -- the steps of a run ---------------------------------------------------------------------------

    def mend(self) -> None:
        """Finish what a kill cut in two."""
        for folder in (self.layout.build, self.record.parent, graph.CACHE):
            files.sweep(folder)
        if self.shares_folder:
            files.move_in(self.staging, self.layout.gguf_folder, self.record.name)
            files.remove(self.staging)
        elif not self.phase.gate:
            files.mend_folder(self.record.parent, self.record.name, self.archive())

    def archive(self) -> files.Archive | None:
        return archive.keeper(self.layout) if self.phase.name == "train" else None

    def load_inputs(self) -> None:
        """Read the records of what this phase needs and check every byte behind them."""
        told = self.progress("MB read and checked")
        self.inputs = lineage.load(self.phase.needs, self.config, self.phase.name, self.phase.weights, told)

    def write_record(self, facts: dict, folder: Path, names: list[str] | None = None, **more: object) -> None:
        content = {
            "subject": manifest.describe(folder, names, self.hashes),
            "phase": self.phase.name,
            "config": self.config.digest(self.phase.name),
            "settings": self.settings,
            "inputs": self.input_digests(),
            **more,
            "facts": facts,
            "versions": provenance.versions(),
            "git_commit": provenance.git_commit(),
            "audit": self.head,
            "started": datetime.datetime.fromtimestamp(self.started, datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "peak_mb": provenance.peak_mb(),
        }
        manifest.write(folder / self.record.name, content)

    def input_digests(self) -> list[dict]:
        """`inputs` of the record: the digest of every phase (and of the documents) that was read."""
        found = [{"name": name, "sha256": manifest.digest(content)} for name, content in self.inputs.items()]
        if self.sources is not None:
            found.insert(0, {"name": "sources", "sha256": self.sources})
        return found

    def execute(self, work: Callable[["Run"], dict]) -> None:
        self.mend()
        self.sources = sources.outside(self.phase.name, self.config)
        reason = manifest.why_stale(self.phase, self.config, self.sources)
        if reason is None and not self.arguments.force:
            manifest.refresh(self.record)
            self.say(f"{self.phase.name}: same inputs and settings as before, nothing to do ({self.record})")
            return
        self.say(f"== {self.phase.name}: {self.phase.purpose}{_because(reason, self.record)}")
        self.load_inputs()
        self.audited((self.gate if self.phase.gate else self.produce), work, reason or "--force")
        self.say(f"{self.phase.name}: wrote {self.record.parent} in {time.time() - self.started:.0f} s")

    def audited(self, way: Callable, work: Callable[["Run"], dict], reason: str) -> None:
        """Run it between two entries of the audit trail: what it began with, and what became of it."""
        named = {"project": self.layout.name, "phase": self.phase.name}
        whole = self.config.values.model_dump(mode="json")
        began = {
            "reason": reason,
            "inputs": self.input_digests(),
            "git_commit": provenance.git_commit(),
            "versions": provenance.versions(),
        }
        self.head = audit.append("start", **named, config_file=str(self.config.path), config=whole, **began)
        try:
            way(work)
        except (Exception, KeyboardInterrupt) as error:
            failure = explained(error)
            event = "interrupted" if failure.code == INTERRUPTED else "failed"
            audit.append(event, **named, code=failure.code, cause=failure.cause, **self.told())
            raise
        made = manifest.read(self.record) or {}
        kept = {key: made[key] for key in ("subject", "verdict", "override", "facts") if key in made}
        audit.append("done", **named, record=str(self.record), digest=manifest.digest(made), **kept, **self.told())

    def told(self) -> dict:
        """The verdict of a gate, with what it is bound to; of other phases nothing."""
        path = self.record.parent / "verdict.json"
        if not self.phase.gate or not path.is_file() or path.stat().st_mtime < self.started:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = ("verdict", "override", "bound_to", "checks", "signals", "cause")
        return {"judged": {key: content[key] for key in wanted if key in content}}

    def produce(self, work: Callable[["Run"], dict]) -> None:
        files.remove(self.staging)
        self.staging.mkdir(parents=True)
        try:
            facts = work(self)
        except BaseException:
            files.remove(self.staging)  # nothing goes on from it, and it may be large
            raise
        if facts is not None:  # else the script wrote a record of its own form
            self.write_record(facts, self.staging)
        if self.shares_folder:
            before = manifest.read(self.record)
            files.move_in(self.staging, self.layout.gguf_folder, self.record.name)
            self.remove_left_over(before)
        else:
            files.swap_folder(self.record.parent, self.archive())
        self.discard()

    def discard(self) -> None:
        for path in self.discarded:
            files.remove(path)

    def remove_left_over(self, before: dict | None) -> None:
        """Files of the old record that the new one does not name: a quantization taken off the list."""
        now = {item["name"] for item in manifest.read(self.record)["subject"]}
        for item in before["subject"] if before else []:
            if item["name"] not in now:
                files.remove(self.record.parent / item["name"])

    def gate(self, work: Callable[["Run"], dict]) -> None:
        """A gate's facts hold `checks`, each with name, value, limit, n and passed; all must pass.

        `remedy` is for those that did not; a check may have its own. A gate may give a `verdict` of its own, with a
        `cause` in one line when it is no PASS: such a verdict a written reason can override (OVERRIDE_REASON).
        """
        folder = self.record.parent
        folder.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        facts = work(self)
        failed = [check for check in facts["checks"] if check["passed"] is not True]
        verdict = {
            "verdict": "FAIL" if failed else "PASS",
            "phase": self.phase.name,
            "bound_to": self.input_digests(),
            **facts,
        }
        passed = not failed and verdict["verdict"] == "PASS"
        reason = os.environ.get(OVERRIDE, "").strip() if "verdict" in facts and not passed else ""
        if reason:
            verdict["override"] = one_line(reason)
        files.write_json(folder / "verdict.json", verdict)
        for check in facts["checks"]:
            self.say(f"  {'ok  ' if check['passed'] is True else 'FAIL'} {describe_check(check)}")
        if not passed and not reason:
            raise self.not_passed(facts, failed)
        if reason:
            self.say(f"{self.phase.name}: {verdict['verdict']}, overridden: {verdict['override']}")
        names = sorted(path.name for path in folder.iterdir() if path.name in GATE_FILES)
        self.write_record({}, folder, names, verdict=verdict["verdict"], **({"override": reason} if reason else {}))
        self.discard()

    def not_passed(self, facts: dict, failed: list[dict]) -> ForgeError:
        first = failed[0] if failed else {}
        cause = facts.get("cause") or describe_check(first)
        return ForgeError(
            f"{self.phase.name} did not pass: {cause}", first.get("remedy") or facts["remedy"], GATE_NOT_PASSED
        )


def describe_check(check: dict) -> str:
    value = check["value"]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    counted = f" (n={check['n']})" if check.get("n") is not None else ""
    return f"{check['name']}: {shown}, wanted {check['limit']}{counted}"


def _because(reason: str | None, record: Path) -> str:
    if reason is None:
        return " (--force)"
    content = manifest.read(record)
    last = f"; last time it took {content['seconds']:.0f} s" if content and "seconds" in content else ""
    return f" ({reason}{last})"


Work = Callable[[Run], dict]


def alone(run: Run, work: Work) -> None:
    """Run one phase in this process."""
    with lock(run.layout, run.phase.name):
        run.execute(work)


def start(
    doc: str,
    name: str,
    work: Work,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    instead: Callable[[Run], bool] | None = None,
    execute: Callable[[Run, Work], None] = alone,
) -> None:
    """Run one phase and end the process with its exit code.

    `instead(run)` may do something else than the phase (answer one question, say); when it returns True the
    phase itself is not run. `execute(run, work)` runs it: alone, or (training) in several processes.
    """
    arguments_parser = command.parser(doc)
    arguments_parser.add_argument("--force", action="store_true", help="do the work even when nothing changed")
    if add_arguments:
        add_arguments(arguments_parser)
    arguments = arguments_parser.parse_args()

    def body() -> None:
        run = Run(graph.BY_NAME[name], config.load(arguments.config), arguments)
        if instead and instead(run):
            return
        execute(run, work)

    command.guard(body, debug=arguments.debug)


@contextlib.contextmanager
def lock(layout: graph.Layout, name: str) -> Iterator[None]:
    """Hold the project's lock. The kernel frees it when the process ends, however it ends."""
    layout.build.mkdir(parents=True, exist_ok=True)
    with (layout.build / "lock").open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ForgeError(f"{layout.name} is locked by {holder}", "wait until it ends, or stop it", LOCKED) from None
        handle.truncate(0)
        handle.write(f"{name}, process {os.getpid()}")
        handle.flush()
        yield


def tidy(configuration: config.Config) -> None:
    """Finish or remove what a killed run left, of phases that nothing will run again; nothing while a run works.

    Not the base: projects share it, and each has a lock of its own.
    """
    rows = [row for row in graph.PHASES if row.name != "model"]
    runs = [Run(row, configuration, argparse.Namespace(force=False)) for row in rows]
    files.sweep(configuration.layout.build.parent)
    for run in runs:
        files.sweep(run.record.parent)
    if any(path.exists() for run in runs for path in (run.staging, files.retired_path(run.record.parent))):
        with contextlib.suppress(ForgeError), lock(configuration.layout, "make"):
            for run in runs:
                run.mend()
