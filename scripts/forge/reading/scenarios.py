"""Scenarios of scenario-forge: its SQLite database, its JSON export, and records with an expected answer.

A scenario is a prompt, or a conversation that ends with the user, with an evaluation target. The database holds no
answers: its ratings (0 Ineffective to 3 Excellent) judge the scenario, so they label nothing that a model says. A
JSON record may carry `expected_behavior` (the answer to give), `failure_modes` (bad answers) and
`rating: {"score": 0..1}`, which judges the expected answer. A failure text is the rejected side of a pair or a
negative label, never an answer to train. The database is opened read-only, and nothing is created beside it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from forge import files
from forge.errors import ForgeError
from forge.reading import json_records, raw_records
from forge.reading.raw_records import Problem, Rejected

GOOD, POOR = 0.8, 0.3  # scores: above the first an answer is fit to train, under the second it is a bad one
WAIT = 5  # seconds that another program may hold the database locked
COLUMNS = {"id", "prompt", "evaluation_target", "success_criteria"}
WAL = b"\x02"  # byte 18 of an SQLite file in write-ahead-log mode
# Rows to train on, which newer versions of scenario-forge export, too: no scenarios.
TRAINING = ({"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"messages"}, {"conversations"}, {"text"})

# Answers that are none, after punctuation and brackets are taken off.
PLACEHOLDERS = {"", "todo", "tbd", "fixme", "n a", "na", "none", "null", "placeholder", "xxx", "lorem ipsum"}
PLACEHOLDERS |= {"fill in", "answer", "your answer", "your answer here", "expected behavior", "expected behaviour"}
REFUSAL = re.compile(
    r"(i'?m|i am)( very)? sorry,?( but)? (i|we) (can'?t|cannot|can not|am unable to) (help|assist)\b[^.!?]*[.!?]?"
    r"|(i|we) (can'?t|cannot|can not|won'?t|am unable to) (help|assist)"
    r"( (you|with|on|in|this|that|it|your|the|such|any|kind|of|request|question|topic)s?)*[.!]?"
)
# The successor of scenario-forge (circuitrylabs/circuitry-forge, its exporters) writes one fixed text a target where
# an answer belongs, and a marked one where a bad answer belongs. SHA-256 of the fixed texts' words, 16 digits each.
EXPORTED = {"ff619bb7c75fb78a", "ecc9bf51e8ad1512", "73cb1828acb6255e", "ad681af37666a40d", "2ff74db42ee89329"}
EXPORTED |= {"36029d2dd3663bf6", "e4ae0c81053c28fd"}
PLACEHOLDER, REFUSED = "a placeholder", "a canned refusal"
MARKED = ("adversarial_content", "harmful response generation not yet implemented")


@dataclass
class Scenario:
    """`prompt` is what the person says, of several turns joined by line breaks; `turns` is the conversation (role and
    content, user and assistant by turns, the user first and last). `rating` as it was given: 0 to 3 for the scenario,
    {"score": 0..1} for its answer, or None."""

    kind: str
    origin: str
    target: str
    prompt: str
    criteria: list[str] = field(default_factory=list)
    rating: int | dict | None = None
    expected: str | None = None
    failures: list[str] = field(default_factory=list)
    turns: list[dict] = field(default_factory=list)
    family: str | None = None
    id: str | int | None = None
    canary: str | None = None
    pairs_only: bool = False  # its expected answer is compared with the failures, and not trained by itself

    def __post_init__(self):
        self.turns = self.turns or [{"role": "user", "content": self.prompt}]

    @property
    def score(self) -> float | None:
        return self.rating["score"] if isinstance(self.rating, dict) else None


def read(source: dict) -> list[Scenario | Rejected]:
    """Scenarios of one source of the config, its targets only, in the file's order, with what cannot be used.

    A record that cannot be used is left out when it names another target. Raises ForgeError (2) when the file is
    none of its kind, or holds no scenario that can be used for one of the targets.
    """
    name, path = source["path"], Path(source["path"]).expanduser()
    found = list(_database(path, name) if source["kind"] == "scenario_forge" else _json(path, name))
    wanted = source["targets"]
    _require_targets(wanted, [item for _, item in found], name)
    kept = [item for target, item in found if not wanted or target is None or target in wanted]
    for item in kept:
        if isinstance(item, Scenario):
            item.pairs_only = source.get("use") == "pairs"
    return kept


def _require_targets(wanted: list[str], found: list[Scenario | Rejected], name: str) -> None:
    known = sorted({item.target for item in found if isinstance(item, Scenario)})
    missing = next((target for target in wanted if target not in known), None)
    if missing is None:
        return
    remedy = f"correct data.sources: targets; it holds {raw_records.shown(known) or 'no scenario at all'}"
    if found and not known:
        remedy = f"correct the records, first {found[0].origin}: {found[0].reason}"
    raise ForgeError(f"{name} holds no scenario for the target {missing!r}", remedy)


def _made(target: object, made: Callable[..., Scenario], values: tuple | dict, origin: str) -> tuple:
    """(target, scenario), or (target, rejected) of a record that cannot be used; None for a target that is none."""
    try:
        return target, made(values, origin)
    except Problem as problem:
        return _target(target), Rejected(origin, str(problem), raw_records.fault(values)[1])


def _target(value: object) -> str | None:
    with contextlib.suppress(Problem):
        return _text(value, "evaluation_target")
    return None


def refusal(scenario: Scenario) -> str | None:
    """Why the scenario's answer must not be trained; None when it may. Failure modes are never trained."""
    if kind := _wordless(scenario.expected) or canned(scenario.expected):
        return f"its expected_behavior is {kind}"
    if words_of(scenario.expected) in map(words_of, scenario.failures):
        return "its expected_behavior is one of its failure modes"
    if scenario.score is None or scenario.score > GOOD:
        return None
    if scenario.score < POOR:
        return f"its answer is rated under {POOR}: only its failure mode is kept, labelled as bad"
    return f"its answer is rated from {POOR} to {GOOD}: neither good nor bad"


def pairs(scenario: Scenario) -> list[tuple[str, str]]:
    """(chosen, rejected) texts: a good expected answer against each failure text that is one (see `unpaired`)."""
    if scenario.expected is None or refusal(scenario):
        return []
    return [(scenario.expected, text) for text, reason in _failures(scenario) if reason is None]


def unpaired(scenario: Scenario) -> list[tuple[str, str]]:
    """(failure text, reason) of every one that neither a pair nor a label is made of, in their order."""
    labelled, unused = bool(negatives(scenario)), _unused(scenario)
    found = [(text, reason or unused) for text, reason in _failures(scenario)]
    return [(text, reason) for text, reason in found[1 if labelled else 0 :] if reason]


def _unused(scenario: Scenario) -> str | None:
    """Why no pair is made of a scenario's failure texts, nor a label of any but the first; None: they are paired."""
    if scenario.score is not None and scenario.score < POOR:
        return "only the first failure mode of a badly rated answer is labelled"
    if scenario.expected is None:
        return "it has no expected_behavior to pair it with"
    reason = refusal(scenario)
    if reason and reason.startswith("its answer is rated"):
        return "its answer is neither good nor bad"
    return f"nothing to pair it with: {reason}" if reason else None


def negatives(scenario: Scenario) -> list[str]:
    """Answers to label as bad (KTO: label False): the first failure text where the score is under 0.3.

    That is the plan's negative example. A rating from 0 to 3 judges the scenario and labels nothing.
    """
    if scenario.score is None or scenario.score >= POOR:
        return []
    return [text for text, reason in _failures(scenario)[:1] if reason is None]


def _failures(scenario: Scenario) -> list[tuple[str, str | None]]:
    """Each failure text with what is wrong with it. A refusal in few words is none: it leaves the person alone,
    which is a failure."""
    found: list[tuple[str, str | None]] = []
    for text in scenario.failures:
        kind, reason = _wordless(text) or canned(text), None
        if kind and kind != REFUSED:
            reason = f"its failure mode is {kind}"
        elif words_of(text) == words_of(scenario.expected or ""):
            reason = "its failure mode is its expected_behavior"
        elif words_of(text) in [words_of(other) for other, _ in found]:
            reason = "its failure mode stands twice"
        found.append((text, reason))
    return found


def canned(text: str) -> str | None:
    """What an answer is that nobody wrote for its question: "a placeholder", "a canned refusal" or "a fixed text
    of an exporter"; None for others."""
    if len(text) > 1000:  # the longest fixed text has 170 characters
        return None
    words = words_of(text)
    if words in PLACEHOLDERS or any(mark in words for mark in MARKED):
        return PLACEHOLDER
    if hashlib.sha256(words.encode()).hexdigest()[:16] in EXPORTED:
        return "a fixed text of an exporter"
    refused = REFUSAL.fullmatch(" ".join(text.casefold().replace("\u2019", "'").split()))
    return REFUSED if refused else None


def _wordless(text: str) -> str | None:
    """To a person in need nobody answers with a number; elsewhere 42 may be the very answer."""
    return None if any(map(str.isalpha, text)) else PLACEHOLDER


def words_of(text: str) -> str:
    """Words alone: letter case, punctuation and spaces aside."""
    return " ".join(re.findall(r"\w+", text.casefold()))


# -- the database -----------------------------------------------------------------------------------------


def facts(source: dict | str | Path) -> dict:
    """What the record says about a source of the config, or about a database at a path.

    `sha256` of the file (and `log_sha256` of an SQLite log beside it). Of a database also: `scenario_forge_version`
    (the file's own user_version, else the installed package's, else None), `user_version` and `application_id`
    (None where they are not set: scenario-forge sets neither), numbers of `scenarios`, of those `rejected` (where
    there are any), of the others by `targets`, of `ratings`,
    of `superseded_ratings` (the latest of a scenario counts) and of `orphan_ratings` (their scenario is gone).
    Raises ForgeError (2) as `read` does.
    """
    given = source["path"] if isinstance(source, dict) else source
    path = Path(given).expanduser()
    found = {}
    if not isinstance(source, dict) or source["kind"] == "scenario_forge":
        with _opened(path, str(given)) as database:
            found = _facts(database)
    log = path.with_name(path.name + "-wal")
    try:
        digests = {"sha256": files.sha256_file(path)}
        if log.is_file() and log.stat().st_size:
            digests["log_sha256"] = files.sha256_file(log)
    except OSError as error:
        raise ForgeError(f"{given}: {error.strerror}", "make it readable, or remove that source") from None
    return {**digests, **found}


def _facts(database: sqlite3.Connection) -> dict:
    version, application = (
        database.execute(f"PRAGMA {name}").fetchone()[0] or None for name in ("user_version", "application_id")
    )
    made = (item for _, item in (_judged(row, "") for row in _rows(database)))
    targets = Counter(item.target if isinstance(item, Scenario) else None for item in made)
    scenarios, rejected = targets.total(), targets.pop(None, 0)
    rated: Counter = Counter()
    if {"scenario_id", "rating"} <= _columns(database, "ratings"):
        rated = Counter(row[0] for row in database.execute("SELECT scenario_id FROM ratings"))
    known = {row[0] for row in database.execute("SELECT id FROM scenarios")}
    return {
        "scenario_forge_version": f"schema {version}" if version else _installed(),
        "user_version": version,
        "application_id": application,
        "scenarios": scenarios,
        **({"rejected": rejected} if rejected else {}),
        "targets": dict(sorted(targets.items())),
        "ratings": rated.total(),
        "superseded_ratings": sum(count - 1 for number, count in rated.items() if number in known),
        "orphan_ratings": sum(count for number, count in rated.items() if number not in known),
    }


def _installed() -> str | None:
    try:
        return importlib.metadata.version("scenario-forge")
    except importlib.metadata.PackageNotFoundError:
        return None


def _database(path: Path, name: str) -> list[tuple[str | None, Scenario | Rejected]]:
    with _opened(path, name) as database:
        return [_judged(row, name) for row in _rows(database)]


def _judged(row: tuple, name: str) -> tuple[str | None, Scenario | Rejected]:
    number, *values = row
    return _made(values[0], _scenario, tuple(values), f"{name}#{number if type(number) is int else '?'}")


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(_address(path, name), uri=True, timeout=WAIT)) as database:
            # SQLite's own error for text that is no UTF-8 quotes that text, and ends the reading.
            database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            _require_schema(database, name)
            yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where SQLite's own message quotes bytes
        if "locked" in str(error):
            raise ForgeError(
                f"{name} is locked by another program", "close scenario-forge, then run the same command again"
            ) from None
        raise ForgeError(
            f"{name} cannot be read: {error}",
            "name scenario-forge's database in data.sources, or restore it from a backup",
        ) from None
    except OSError as error:
        raise ForgeError(f"{name}: {error.strerror}", "make it readable, or remove that source") from None


def _address(path: Path, name: str) -> str:
    """SQLite's address of the file, read-only. In write-ahead-log mode even a reader creates files, save where
    the file is declared immutable (then the log must be empty) or a writer has made them already."""
    with path.open("rb") as handle:
        logged = handle.read(19)[18:] == WAL
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    log, shared = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if not logged or shared.exists():
        return address
    if log.exists() and log.stat().st_size:
        raise ForgeError(
            f"{name} has changes in {log.name} that were not written into it yet",
            f"run: sqlite3 {name} 'PRAGMA wal_checkpoint(TRUNCATE)'",
        )
    return address + "&immutable=1"


def _require_schema(database: sqlite3.Connection, name: str) -> None:
    missing = COLUMNS - _columns(database, "scenarios")
    if missing:
        what = "table scenarios" if missing == COLUMNS else f"column scenarios.{min(missing)}"
        raise ForgeError(
            f"{name} is no database of scenario-forge: it has no {what}",
            "name scenario-forge's own file in data.sources: path",
        )


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


def _rows(database: sqlite3.Connection) -> Iterator[tuple]:
    """Id, target, prompt, criteria and the latest rating of every scenario; nothing enforces that a rating has one."""
    columns, latest = _columns(database, "ratings"), {}
    if {"scenario_id", "rating"} <= columns:
        order = ", ".join([*(["rated_at"] if "rated_at" in columns else []), "rowid"])
        latest = dict(database.execute(f"SELECT scenario_id, rating FROM ratings ORDER BY {order}"))
    for row in database.execute("SELECT id, evaluation_target, prompt, success_criteria FROM scenarios ORDER BY id"):
        yield (*row, latest.get(row[0]))


def _scenario(values: tuple, origin: str) -> Scenario:
    target, prompt, criteria, rating = values
    for value, column in ((target, "evaluation_target"), (prompt, "prompt"), (criteria, "success_criteria")):
        _text(value, column, may_be_empty=column == "prompt")
    with contextlib.suppress(ValueError, RecursionError):  # older databases hold a plain sentence
        criteria = json.loads(criteria)
    listed = criteria if isinstance(criteria, list) else [criteria]
    kept = [_text(item if isinstance(item, str) else json.dumps(item), "success_criteria") for item in listed]
    return Scenario("scenario_forge", origin, target, prompt, kept, rating if rating in range(4) else None)


# -- JSON -----------------------------------------------------------------------------------------------


def _json(path: Path, name: str) -> Iterator[tuple[str | None, Scenario | Rejected]]:
    """A list of records, or records one after the other (JSON Lines)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ForgeError(f"{name}: {error.strerror}", "make it readable, or remove that source") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ForgeError(f"{name}:{line}: not UTF-8", "save the file as UTF-8") from None
    begin = text.lstrip()[:1]
    if begin not in ("[", "{"):
        raise ForgeError(
            f"{name} holds no scenarios" + (" but plain text" if text.strip() else ": it is empty"),
            "export again when scenario-forge has scenarios (rated ones, for --min-rating), or remove that source",
        )
    try:
        for element in json_records.elements(text, text.index("[") + 1 if begin == "[" else 0, begin == "["):
            yield _of_element(element, f"{name}:{element.line}")
    except json_records.Broken as error:
        raise ForgeError(f"{name}:{error.line}: {error}", "export it again, or correct what stands there") from None


def _of_element(element: json_records.Element, origin: str) -> tuple[str | None, Scenario | Rejected]:
    target = element.value.get("evaluation_target") if isinstance(element.value, dict) else None
    if element.problem:
        return _target(target), Rejected(origin, element.problem, element.end - element.begin)
    return _made(target, _record, element.value, origin)


def _record(record: object, origin: str) -> Scenario:
    if not isinstance(record, dict):
        raise Problem("a record is no object")
    rows = next((keys for keys in TRAINING if keys <= record.keys()), None)
    if "evaluation_target" not in record and rows:
        raise ForgeError(
            f"{origin}: rows to train on ({', '.join(key for key in record if key in rows)}), no scenarios",
            "write kind: records for that source, or export again with --format json",
        )
    expected = record.get("expected_behavior")
    turns = _turns(record.get("prompt"))
    return Scenario(
        "scenario_json",
        origin,
        _text(record.get("evaluation_target"), "evaluation_target"),
        "\n".join(turn["content"] for turn in turns if turn["role"] == "user"),
        _texts(record.get("success_criteria"), "success_criteria"),
        _rating(record.get("rating")),
        None if expected is None else _text(expected, "expected_behavior", may_be_empty=True),
        _texts(record.get("failure_modes"), "failure_modes"),
        turns,
        _text(record["family"], "family") if record.get("family") is not None else None,
        _id(record.get("id")),
        _text(record["canary"], "canary") if record.get("canary") is not None else None,
    )


def _turns(value: object) -> list[dict]:
    """A prompt as a conversation: text is what the user says; a list has user and assistant by turns."""
    if not isinstance(value, list):
        return [{"role": "user", "content": _text(value, "prompt", may_be_empty=True)}]
    turns = []
    for place, turn in enumerate(value):
        key = f"prompt[{place}]"
        role = ("user", "assistant")[place % 2]
        if not isinstance(turn, dict) or turn.get("role") != role:
            raise Problem(f"{key} is no turn of the {role}")
        turns.append({"role": role, "content": _text(turn.get("content"), f"{key}.content")})
    if len(turns) % 2 == 0:
        raise Problem("prompt does not end with the user")
    return turns


def _id(value: object) -> str | int | None:
    return value if value is None or type(value) is int else _text(value, "id")


def _text(value: object, key: str, may_be_empty: bool = False) -> str:
    """The value, when it is text that can be written down again: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        problem = "is missing" if value is None else "is empty" if value == "" else "is no text"
    elif "\0" in value or re.search("[\ud800-\udfff]", value):
        problem = "holds a character that is none (NUL, half a surrogate pair, or no UTF-8)"
    else:
        return value
    raise Problem(f"{key} {problem}")


def _texts(value: object, key: str) -> list[str]:
    """A list of texts; one text counts as a list of one, a missing value as none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return [_text(item, key) for item in listed]


def _rating(value: object) -> int | dict | None:
    score = value.get("score") if isinstance(value, dict) else None
    if isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1:
        return {"score": score}
    if value is None or value == {} or (type(value) is int and 0 <= value <= 3):
        return None if value == {} else value
    raise Problem("a rating is neither 0 to 3 nor a score from 0 to 1")
