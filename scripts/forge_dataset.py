"""Make the training set from documents, scenarios and records: dataset_package/<name>/.

Reads data.* and project.{seed, system_prompt, identity} of the config, the sources that it names, and the base
model's tokenizer. Writes, where they have rows, train.jsonl, validation.jsonl (sections and conversations that
training never sees, nor anything almost equal to them), questions.jsonl (wordings kept out of training, with the
facts that an answer must contain), preference.jsonl, kto.jsonl, evaluation.jsonl (scenarios without an answer),
dropped.jsonl (every piece of text that found no row, with file, line and reason), and statistics.json, README.md and
manifest.json.

Sections become "what does the page say about ..." rows, Q:/A: paragraphs become one row a wording, definitions a
question each. A scenario with a good expected answer becomes one row, and one preference pair for each failure that
it warns of. Nothing is cut at the token budget: long sections are split between paragraphs and sentences. Secrets are
redacted; data made to bypass safety is refused (exit 4). Of scenarios/training/safety.jsonl as many rows are mixed in
as make data.safety_share of the training rows. Same input, same bytes.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from forge import chat, files, hub, manifest, models, phase, sources
from forge.data import cache, datacard, parallel, reference, rows, safety
from forge.data.package import MOST_REFUSED, Package, encode
from forge.errors import BAD_INPUT, DATA_REFUSED, ENVIRONMENT, ForgeError
from forge.reading import document_files, records, scenarios
from forge.screening import bypass

BATCH = 32  # documents, scenarios or records that a worker takes at once
FEW = 64  # documents; for fewer, starting workers takes longer than it saves
SHOWN = 20  # lines of a list that is printed; the whole of it is in a file
SIZE = 4 << 20  # bytes of documents, or characters of records, after which a task is large enough
LINK = "put the files themselves there, or name their own folder as a source"
TICK = 10  # seconds between two lines of progress
REJECTED = {"remedy": "correct that record, or set data.mode to lenient, which leaves it out", "code": BAD_INPUT}


def work(run: phase.Run) -> dict:
    data = run.settings["data"]
    found = gather(data["sources"])  # before libraries are told that there is no network
    models.prepare()
    heldout = reference.Reference([*reference.prompts_of(), *found.to_evaluate()])
    listed = data["screening"]["allowlist"]
    allowed = frozenset(bypass.Allowlist.read(Path(listed)).entries if listed else ())
    maker = rows.Maker(run.settings, models.tokenizer(run.layout.base), heldout, allowed)
    package = Package(run.staging, run.settings)
    try:
        add_reference(package, heldout, found)
        collect(run, package, found, Job(run, maker, heldout))
        if data["safety_share"]:
            add_safety(package, maker)
        require_unchanged(run)
        refuse(run, package)
        package.assign()
        require_rows(package, found)
        if data["safety_share"]:
            package.mix()
        package.write()
    finally:
        package.close()
    return report(run, package, found)


# -- what there is ------------------------------------------------------------------------------------------


class Found:
    """What the sources name: documents by name, scenarios as they are, files of records."""

    def __init__(self):
        self.pages: list[str] = []
        self.scenarios: list[scenarios.Scenario | records.Rejected] = []
        self.scenario_facts: list[dict] = []
        self.records: list[tuple[Path, str]] = []
        self.unreadable: list[tuple[str, ForgeError]] = []

    def to_evaluate(self) -> list[tuple[str, str]]:
        """Scenarios without an answer: training data is kept free of their prompts."""
        return [(item.origin, chat.asked(item.turns)) for item in self.scenarios if is_evaluation(item)]


def is_evaluation(scenario: scenarios.Scenario | records.Rejected) -> bool:
    if not isinstance(scenario, scenarios.Scenario):
        return False
    return scenario.expected is None and not scenario.failures and bool(scenario.prompt.strip())


def gather(listed: list[dict]) -> Found:
    found = Found()
    for source in listed:
        if source["kind"] == "documents":
            found.pages += readable(source, found)
        elif source["kind"] == "records":
            found.records += record_files(source, found)
        else:
            sources.files_of(source)  # a missing file is refused in either mode
            try:
                found.scenarios += scenarios.read(source)
                found.scenario_facts.append({"path": source["path"], **scenarios.facts(source)})
            except ForgeError as error:
                found.unreadable.append((source["path"], error))
    found.pages = list(dict.fromkeys(found.pages))
    return found


def readable(source: dict, found: Found) -> list[str]:
    """Names of a source's files; what of it is not read is noted. Raises ForgeError (2) when there is none."""
    names = sources.names_of(source)
    left_out = sources.not_read(source, names)
    found.unreadable += [(name, ForgeError(cause, LINK)) for name, cause in sorted(left_out.items())]
    if not names:
        kind = {"documents": "document", "records": "file of records"}[source["kind"]]
        suffixes = ", ".join(f".{suffix}" for suffix in sources.BY_KIND[source["kind"]][:4])
        raise ForgeError(f"data.sources: no {kind} found", f"put {suffixes} files there, or change include")
    return [name for name in names if name not in left_out]


def record_files(source: dict, found: Found) -> list[tuple[Path, str]]:
    """Files of records with the name that messages give them."""
    if not source["path"].startswith(sources.HUB):
        return [(Path(name), name) for name in readable(source, found)]
    repository = source["path"].removeprefix(sources.HUB)
    fetched = hub.fetch(repository, source["revision"], sources.included(source), source["exclude"])
    return [(path, f"{source['path']}/{name}") for name, path in fetched]


# -- rows, by several processes -------------------------------------------------------------------------------


class Job:
    """What a worker does with a task: a list of documents' names, or a list of scenarios or records."""

    def __init__(self, run: phase.Run, maker: rows.Maker, heldout: reference.Reference):
        self.maker, self.seed = maker, run.settings["project"]["seed"]
        base = [run.config.digest("dataset"), sorted(maker.allowed), heldout.prompts, cache.code_digest()]
        base += [manifest.digest(content) for content in run.inputs.values()]
        self.cache = cache.Cache(run.layout.build / "dataset.cache", files.sha256_json(base))

    def __call__(self, task: list) -> list[tuple[str | None, dict | None, dict]]:
        """(cache key, part if it is new, part) for each document; one part for a list of others."""
        if isinstance(task[0], str):
            return [self.document(name) for name in task]
        part = rows.Part()
        for item in task:
            try:
                if isinstance(item, scenarios.Scenario):
                    self.maker.scenario(item, part)
                elif isinstance(item, records.Record):
                    self.maker.record(item, part)
                else:
                    told = {"origin": item.origin, "cause": f"{item.origin}: {item.reason}"}
                    part.bad.append({**REJECTED, **told, "characters": item.characters})
            except ForgeError as error:  # the chat template cannot render it
                told = {"origin": item.origin, "cause": f"{item.origin}: {error.cause}", "code": error.code}
                part.bad.append({**told, "remedy": error.remedy, "characters": 0})
        return [(None, None, encode(part, self.seed))]

    def document(self, name: str) -> tuple[str | None, dict | None, dict]:
        try:
            raw = document_files.load(Path(name))
            key = self.cache.key(name, hashlib.sha256(raw).hexdigest())
            known = self.cache.get(key)
            if known is not None:
                return key, None, known
            made = encode(self.maker.document(name, document_files.parse(name, raw)), self.seed)
            return key, made, made
        except ForgeError as error:
            told = {"origin": name, "cause": error.cause, "remedy": error.remedy, "code": error.code}
            return None, None, encode(rows.Part(bad=[told]), self.seed)


def tasks(found: Found, lenient: bool) -> Iterator[list]:
    """Lists of at most BATCH items and about SIZE bytes, so that what is under way stays small."""
    yield from batches(found.pages, lambda name: os.path.getsize(name) if os.path.isfile(name) else 0)  # noqa: PTH113, PTH202
    yield from batches(found.scenarios, lambda scenario: 0)
    yield from batches(records_of(found, lenient), lambda record: record.characters)


def batches(items: Iterable, size: Callable[[object], int]) -> Iterator[list]:
    batch, total = [], 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == BATCH or total > SIZE:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def records_of(found: Found, lenient: bool) -> Iterator[records.Record | records.Rejected]:
    for path, name in found.records:
        try:
            yield from records.read(path, name)
        except ForgeError as error:
            if not lenient:
                raise
            cause = error.cause.removeprefix(f"{name}: ").removeprefix(f"{name} ")
            yield records.Rejected(name, cause, path.stat().st_size if path.is_file() else 0)


def collect(run: phase.Run, package: Package, found: Found, job: Job) -> None:
    for path, error in found.unreadable:
        skip(run, package, {"origin": path, "cause": error.cause, "remedy": error.remedy, "code": error.code})
    many = len(found.pages) + len(found.scenarios) > FEW or bool(found.records)
    lenient = run.settings["data"]["mode"] == "lenient"
    began = last = time.monotonic()
    seen = 0
    job.cache.begin()
    try:
        for parts in parallel.ordered(job, tasks(found, lenient), parallel.workers() if many else 1):
            for key, fresh, part in parts:
                if key is not None:
                    job.cache.put(key, fresh)
                package.add(part)
                for problem in package.bad:
                    skip(run, package, problem)
                package.bad.clear()
                seen += 1
            if time.monotonic() - last > TICK:
                last = time.monotonic()
                run.say(f"  {package.counts['files']} of {len(found.pages)} files, {seen} read, {last - began:.0f} s")
        job.cache.finish()
    finally:
        job.cache.close()


def skip(run: phase.Run, package: Package, problem: dict) -> None:
    """What cannot be read stops mode strict; mode lenient names it, lists it and goes on."""
    error = ForgeError(problem["cause"], problem["remedy"], problem["code"])
    if run.settings["data"]["mode"] == "strict" or error.code == ENVIRONMENT:
        raise error
    package.counts["unreadable"] += 1
    if package.counts["unreadable"] <= SHOWN:
        run.say(f"skip {error.cause}")
    characters = problem.get("characters", 0)
    package.counts.update(lost=characters, characters=characters)
    entry = {"origin": problem["origin"], "reason": error.cause, "characters": characters, "text": ""}
    package.dropped.add(entry, rule="it cannot be read")


def require_unchanged(run: phase.Run) -> None:
    """The record names the digest that the sources had before they were read: the rows must come of those bytes."""
    if sources.outside(run.phase.name, run.config) != run.sources:
        raise ForgeError(
            "a file of data.sources changed while it was read",
            "run the same command again once nothing writes to the sources",
            BAD_INPUT,
        )


def add_reference(package: Package, heldout: reference.Reference, found: Found) -> None:
    """The evaluation sets take part in the search for near-duplicates, and in nothing else."""
    own = {name for name, _ in found.to_evaluate()}
    part = rows.Part()
    for name, text in heldout.prompts:
        if name not in own:
            values = {"id": name, "origin": name, "prompt": text}
            part.rows.append(rows.Row("reference", values, f"reference?{name}", 0, alike=text))
    package.add(encode(part, 0))


def add_safety(package: Package, maker: rows.Maker) -> None:
    """The project's own rows against a loss of safety. One that does not fit data.max_tokens is no lost text."""
    made = rows.Part()
    for record in safety.read():
        maker.safety(record, made)
    package.add(encode(rows.Part(rows=made.rows, refused=made.refused), maker.project["seed"]))


# -- what may not be ------------------------------------------------------------------------------------------


def refuse(run: phase.Run, package: Package) -> None:
    """Ten harmful rows can undo a model's safety, so one is enough to stop: all are listed, nothing is written."""
    listed = run.layout.build / "refused.jsonl"
    files.remove(listed)
    if not package.refused:
        return
    listed.parent.mkdir(parents=True, exist_ok=True)
    files.write_jsonl(listed, package.refused)
    for item in package.refused[:SHOWN]:
        run.say(f"refused {item['origin']}: {item['rule']} ({item['layer']}): {item['excerpt']}")
    what = "all are listed" if len(package.refused) < MOST_REFUSED else f"the first {MOST_REFUSED} findings are"
    raise ForgeError(
        f"{package.refusals} rows look made to bypass a model's safety, the first at {package.refused[0]['origin']}; "
        f"{what} in {listed}",
        "take them out; a harmless one goes by its digest, with a reason, into the file data.screening.allowlist",
        DATA_REFUSED,
    )


def require_rows(package: Package, found: Found) -> None:
    train = int((package.fate == 0).sum())
    evaluation = sum(map(is_evaluation, found.scenarios))
    what = "documents" if found.pages else "scenarios" if found.scenarios else "records"
    if train and not (package.fate == 1).any():
        raise ForgeError(
            "all training rows belong together, so none can be kept for validation"
            if train > 1
            else f"the {what} gave a single row",
            "add more text: one row cannot be split",
        )
    if train:
        return
    if evaluation and evaluation == len(found.scenarios) and not found.pages and not found.records:
        raise ForgeError(
            f"no training row: {evaluation} scenarios hold no answer, a rating judges the scenario",
            "add a scenario_json source whose records have expected_behavior, as those in scenarios/ have",
        )
    if found.scenarios:
        reason = package.dropped.last or "all fell into validation"
        raise ForgeError(
            f"none of {len(found.scenarios)} scenarios gave a training row; the last one: {reason}",
            "write expected_behavior as the very answer to give, rate it above 0.8 or not at all",
        )
    if package.rows_of("preference", "kto"):
        raise ForgeError(
            "there are pairs or labelled rows, but no row to train on first",
            "add documents, scenarios, or records with prompt and completion",
        )
    raise ForgeError(
        f"the {what} gave no training row", "add text, raise data.max_tokens, or lower data.validation_share"
    )


# -- what came out ----------------------------------------------------------------------------------------------


def report(run: phase.Run, package: Package, found: Found) -> dict:
    statistics = datacard.statistics(package, found)
    named = list(run.settings["data"]["sources"])
    if package.safety.get("rows"):
        named.append({"kind": "safety", "path": str(sources.SAFETY_ROWS)})
    statistics["sources"] = sources.digests(named, sources.cache_of(run.layout))
    files.write_json(run.staging / "statistics.json", statistics)
    files.write_text(run.staging / "README.md", datacard.card(run, statistics))
    for name, count in statistics["rows"].items():
        run.say(f"{count:6} rows {name}")
    if statistics["rows"].get("evaluation"):
        run.say("       scenarios without an answer are for evaluation: a rating judges the scenario, not an answer")
    for line in datacard.noticed(statistics):
        run.say(f"       {line}")
    run.say(f"       text in rows: {100 * (1 - statistics['dropped_share']):.1f}%, the rest is in dropped.jsonl")
    kept = ("rows", "tokens", "scenarios", "safety", "sources")
    kept = {name: statistics[name] for name in kept if name in statistics}
    return {**kept, "sources_sha256": run.sources}


if __name__ == "__main__":
    phase.start(__doc__, "dataset", work)
