"""The rows of a run to the files of a dataset package: no row twice, no paraphrase across a split.

Rows come in order and are kept on disk; in memory stay about 80 bytes a row, for 500,000 rows 40 MB. When all are
there, each gets its fate: a file, or a reason to be dropped. Then the lines are copied to where they belong.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from forge import files
from forge.data import clusters, safety
from forge.data.rows import Part, Row, chance
from forge.questions import plain

KINDS = ("supervised", "questions", "preference", "kto", "evaluation", "reference", "safety")
SUPERVISED, QUESTIONS, PREFERENCE, KTO, EVALUATION, REFERENCE, SAFETY = range(len(KINDS))
FILES = {"train": 0, "validation": 1, "questions": 2, "preference": 3, "kto": 4, "evaluation": 5}
TRAIN, VALIDATION = FILES["train"], FILES["validation"]
SPARE = -9  # a safety row that is not needed: no loss, and told nowhere
OF_KIND = {QUESTIONS: 2, PREFERENCE: 3, KTO: 4, EVALUATION: 5, REFERENCE: -1, SAFETY: SPARE}
# Fates under 0 are reasons to be dropped.
REASONS = {
    -2: "the same row as {origin}",
    -3: "the same scenario as {origin}",
    -4: "its question is kept out of training",
    -5: "almost the same as {origin}, which is kept to evaluate on",
    -6: "its answer is taught here and warned of at {origin}",
    -7: "more rows of its label than data.kto_balance allows",
    -8: "it is asked in validation, too",
}
TWICE, SCENARIO, KEPT_OUT, ALIKE, CONFLICT, SURPLUS, IN_VALIDATION = -2, -3, -4, -5, -6, -7, -8
LOST = {
    CONFLICT,
    KEPT_OUT,
}  # text that should have been trained; of the others it is elsewhere, or meant to be left out

MOST_REFUSED = 10_000  # findings that are listed: nobody reads a longer list to its end
LARGE = 0.05  # share of all rows: a group that is larger is trained, or one draw would decide most of validation

META = np.dtype(
    [
        ("kind", "u1"),
        ("trained", "?"),
        ("alike", "?"),
        ("label", "?"),
        ("tokens", "<u4"),
        ("row", "<u8"),
        ("unit", "<u8"),
        ("order", "<u8"),
        ("chance", "<f8"),
        ("question", "<u8"),
        ("good", "<u8"),
        ("bad", "<u8"),
        ("place", "<u8"),
        ("size", "<u4"),
    ]
)


def number(*parts: str) -> int:
    """A 64-bit number for texts: equal texts have equal ones; of 500,000 others two collide once in 10**8 runs."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


def describe(row: Row, seed: int) -> tuple:
    """META of a row, but for `place` and `size`."""
    question = row.question
    answers = [number(question, plain(text)) if text is not None else 0 for text in (row.good, row.bad)]
    return (
        KINDS.index(row.kind),
        row.trained,
        row.alike is not None,
        row.good is not None,
        row.tokens,
        number(*_identity(row)),
        number("unit", row.unit),
        number("order", row.unit),
        chance(seed, row.unit),
        number(question),
        *answers,
    )


def _identity(row: Row) -> tuple[str, ...]:
    """Rows for which this is equal are one row: a question kept out of training is the same as a trained one."""
    if row.kind in ("supervised", "questions", "safety"):
        return "row", row.values["id"]
    return row.kind, row.values["id"], str(row.values.get("label"))


def encode(part: Part, seed: int) -> dict:
    """A part as plain values and bytes: quick to hand from one process to another, and what the cache holds."""
    meta = np.zeros(len(part.rows), META)
    lines = []
    for index, row in enumerate(part.rows):
        line = files.json_line(row.values).encode("utf-8")
        meta[index] = (*describe(row, seed), 0, len(line))
        lines.append(line)
    marks = [clusters.signature(row.alike) for row in part.rows if row.alike is not None]
    return {
        "meta": meta.tobytes(),
        "signatures": np.array(marks, np.uint32).tobytes(),
        "lines": b"".join(lines),
        "told": {
            "dropped": part.dropped,
            "bad": part.bad,
            "refused": part.refused,
            "counts": dict(part.counts),
        },
    }


class Package:
    """Collects encoded parts in `folder` and writes the splits there. `settings` are the dataset phase's."""

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.data, self.project = folder, settings["data"], settings["project"]
        self.spool = (folder / ".rows").open("w+b")
        self.marks = (folder / ".signatures").open("w+b")
        self.size = 0
        self.meta: list[bytes] = []
        self.dropped = Dropped(folder / ".dropped")
        self.bad: list[dict] = []
        self.refused: list[dict] = []
        self.refusals = 0
        self.counts: Counter = Counter()
        self.rows: Counter = Counter()
        self.near = (0, 0)
        self.safety: dict = {}

    def add(self, part: dict) -> None:
        meta = np.frombuffer(part["meta"], META).copy()
        meta["place"] = self.size + np.cumsum(meta["size"], dtype=np.uint64) - meta["size"]
        self.size += len(part["lines"])
        self.spool.write(part["lines"])
        self.marks.write(part["signatures"])
        self.meta.append(meta.tobytes())
        for entry in part["told"]["dropped"]:
            self.dropped.add(entry)
        self.bad.extend(part["told"]["bad"])
        self.refusals += len({(item["origin"], item["digest"]) for item in part["told"]["refused"]})
        self.refused.extend(part["told"]["refused"][: MOST_REFUSED - len(self.refused)])
        self.counts.update(part["told"]["counts"])

    # -- fates --------------------------------------------------------------------------------------------

    def assign(self) -> None:
        """Every row's fate, in `self.fate`; for dropped ones the row that is to blame in `self.blame`."""
        self.table = np.frombuffer(b"".join(self.meta), META)
        self.meta.clear()
        self.fate = np.full(len(self.table), TRAIN, np.int8)
        self.blame = np.zeros(len(self.table), np.int64)
        for kind, fate in OF_KIND.items():
            self.fate[self.table["kind"] == kind] = fate
        self.drop_equal()
        self.drop_conflicts()
        self.split()
        self.keep_apart()
        self.balance()

    def rows_of(self, *names: str) -> int:
        """How many rows go to some of the files."""
        return int(np.isin(self.fate, [FILES[name] for name in names]).sum())

    def live(self, *kinds: int) -> np.ndarray:
        """Numbers of the rows of some kinds that are not dropped."""
        dropped = (self.fate < TRAIN) & (self.table["kind"] != REFERENCE)
        return np.flatnonzero(np.isin(self.table["kind"], kinds) & ~dropped)

    def drop(self, rows: np.ndarray, reason: int, blame: np.ndarray | int = 0) -> None:
        self.fate[rows] = reason
        self.blame[rows] = blame

    def drop_equal(self) -> None:
        """Of equal rows the first stays."""
        _, first, which = np.unique(self.table["row"], return_index=True, return_inverse=True)
        again = np.flatnonzero(first[which] != np.arange(len(self.table)))
        again = again[~np.isin(self.table["kind"][again], (REFERENCE, SAFETY))]
        self.drop(again, TWICE, first[which][again])
        self.fate[again[self.table["kind"][again] == EVALUATION]] = SCENARIO

    def drop_conflicts(self) -> None:
        """An answer that one row teaches and another one warns of teaches nothing: both go."""
        rows = self.live(SUPERVISED, PREFERENCE, KTO)
        good, bad = self.table["good"][rows], self.table["bad"][rows]
        both = np.intersect1d(good[good != 0], bad[bad != 0])
        among = np.isin(good, both) | np.isin(bad, both)
        rows, good, bad = rows[among], good[among], bad[among]
        for value in both:
            teaching, warning = rows[good == value], rows[bad == value]
            self.drop(teaching, CONFLICT, warning[0])
            self.drop(warning, CONFLICT, teaching[0])

    def split(self) -> None:
        """Training or validation for every group of rows that belong together or say almost the same."""
        rows = self.live(SUPERVISED, PREFERENCE, KTO, EVALUATION, REFERENCE)
        groups = clusters.Groups(len(rows))
        for column in ("unit", "question"):  # one question stands on one side
            for begin, end in _runs(self.table[column][rows]):
                for other in end[1:]:
                    groups.join(int(begin), int(other))
        self.join_alike(rows, groups)
        names = groups.names()
        self.drop_alike_to_evaluation(rows, names)
        validated = self.validated(rows, names)
        self.fate[rows[validated & (self.fate[rows] == TRAIN)]] = VALIDATION
        # a pair or a labelled row of a group that validates the model would teach what is to be measured
        kept = np.isin(self.table["kind"][rows], (PREFERENCE, KTO)) & validated & (self.fate[rows] >= TRAIN)
        self.drop(rows[kept], KEPT_OUT)
        self.require_validation(rows, names)

    def signatures(self) -> np.ndarray | None:
        """Those of the rows that have one, in their order; they stay on the disk."""
        self.marks.flush()
        count = int(self.table["alike"].sum())
        path = self.folder / ".signatures"
        return np.memmap(path, np.uint32, "r").reshape(count, clusters.VALUES) if count else None

    def join_alike(self, rows: np.ndarray, groups: clusters.Groups) -> None:
        signatures, marked = self.signatures(), np.flatnonzero(self.table["alike"])
        if signatures is None:
            return
        number_of = np.full(len(self.table), -1, np.int64)
        number_of[rows] = np.arange(len(rows))
        chosen = np.flatnonzero(number_of[marked] >= 0)
        places = number_of[marked[chosen]]
        found: set[int] = set()
        units = self.table["unit"][rows[places]]
        for one, other in clusters.pairs(signatures, self.data["near_duplicates"], chosen):
            groups.join(int(places[one]), int(places[other]))
            if units[one] != units[other]:
                found.update((one, other))
        self.near = (len(found), len(np.unique(units[sorted(found)])))

    def drop_alike_to_evaluation(self, rows: np.ndarray, names: np.ndarray) -> None:
        kinds = self.table["kind"][rows]
        kept = np.isin(kinds, (EVALUATION, REFERENCE))
        first = {}
        for index in np.flatnonzero(kept).tolist():
            first.setdefault(int(names[index]), int(rows[index]))
        taken = np.flatnonzero(~kept & np.isin(names, list(first)))
        self.drop(rows[taken], ALIKE, np.array([first[int(names[index])] for index in taken], np.int64))

    def validated(self, rows: np.ndarray, names: np.ndarray) -> np.ndarray:
        """For each row whether its group is kept for validation: decided by one member, chosen by its name's digest."""
        order = np.lexsort((self.table["order"][rows], names))
        leads = order[np.r_[True, names[order][1:] != names[order][:-1]]] if len(order) else order
        share = self.data["validation_share"]
        chosen = dict(zip(names[leads].tolist(), (self.table["chance"][rows[leads]] < share).tolist(), strict=True))
        always = np.unique(names[self.table["trained"][rows]])
        sizes = np.bincount(names) if len(names) else names
        large = np.flatnonzero(sizes > max(10, LARGE * len(rows)))
        for name in (*always.tolist(), *large.tolist()):
            chosen[name] = False
        return np.array([chosen[name] for name in names.tolist()], bool) if len(rows) else np.zeros(0, bool)

    def require_validation(self, rows: np.ndarray, names: np.ndarray) -> None:
        """Loss on held-out text needs at least one row: a tiny corpus gives up a group of training's.

        Of those that chance could have chosen, else of all but the one that asks for the identity, the smallest;
        and never the only one.
        """
        if (self.fate == VALIDATION).any():
            return
        train = np.flatnonzero(self.fate[rows] == TRAIN)
        groups = [rows[train[members]] for _, members in _runs(names[train])]
        identity = number(plain(self.project["identity"]["question"]))
        movable = [found for found in groups if identity not in self.table["question"][found]]
        free = [found for found in movable if not self.table["trained"][found].any()]
        if len(groups) > 1 and movable:
            order = np.argmin([len(found) + self.table["chance"][found[0]] for found in free or movable])
            self.fate[(free or movable)[order]] = VALIDATION
        elif len(groups) == 1 and movable:
            self.fate[self.unlike_the_others(groups[0])] = VALIDATION

    def unlike_the_others(self, rows: np.ndarray) -> np.ndarray:
        """Of one long section the first part that no other one repeats or asks for: an array of one row, or of none."""
        signatures = self.signatures()
        places = np.searchsorted(np.flatnonzero(self.table["alike"]), rows)
        if signatures is None or len(rows) < 2 or not self.table["alike"][rows].all():
            return rows[:0]
        for index in np.argsort(self.table["row"][rows]).tolist():
            others = np.delete(np.arange(len(rows)), index)
            near = clusters.similarity(signatures[places[index]][None], signatures[places[others]])
            asked = self.table["question"][rows]
            if near.max() < self.data["near_duplicates"] and asked[index] not in asked[others]:
                return rows[index : index + 1]
        return rows[:0]

    def keep_apart(self) -> None:
        """No prompt of validation, questions or evaluation stands in training, whatever file it came from."""
        asked = self.table["question"]
        held = np.isin(self.fate, (VALIDATION, FILES["questions"], FILES["evaluation"]))
        held |= self.table["kind"] == REFERENCE
        train = np.flatnonzero(np.isin(self.fate, (TRAIN, FILES["preference"], FILES["kto"])))
        self.drop(train[np.isin(asked[train], asked[held])], KEPT_OUT)
        questions = np.flatnonzero(self.fate == FILES["questions"])
        validation = asked[self.fate == VALIDATION]
        self.drop(questions[np.isin(asked[questions], validation)], IN_VALIDATION)

    def balance(self) -> None:
        """Of labelled rows, at most `data.kto_balance` of one label for each of the other; then they take turns."""
        rows = np.flatnonzero(self.fate == FILES["kto"])
        label = self.table["label"][rows]
        good, bad = rows[label], rows[~label]
        most = self.data["kto_balance"]
        if most is not None and len(good) and len(bad):
            for more, fewer in ((good, bad), (bad, good)):
                limit = int(most * len(fewer))
                if len(more) > limit:
                    surplus = more[np.argsort(self.table["order"][more], kind="stable")[limit:]]
                    self.drop(surplus, SURPLUS)
            good, bad = (part[self.fate[part] >= TRAIN] for part in (good, bad))
        # where n rows of one label and m of the other lie evenly between 0 and 1, sorting makes them take turns
        evenly = np.r_[(np.arange(len(good)) + 0.5) / max(1, len(good)), (np.arange(len(bad)) + 0.5) / max(1, len(bad))]
        self.kto = np.r_[good, bad][np.argsort(evenly, kind="stable")]

    # -- safety -------------------------------------------------------------------------------------------

    def mix(self) -> None:
        """Of the safety rows as many to the training rows as make `data.safety_share` of both together.

        Comes after `assign`: these rows change no split, and the config's own data goes first. `self.safety` tells
        what was `wanted`, how many were `available`, how many `rows` were taken, and those by `kinds`.
        """
        share, own = self.data["safety_share"], self.rows_of("train")
        wanted = int(share * own / (1 - share) + 0.5)
        available = self.available()
        told = [self.values(row) for row in available.tolist()]
        order = safety.evenly(told, self.table["chance"][available].tolist(), self.project["seed"])[:wanted]
        self.fate[available[order]] = TRAIN
        kinds = Counter(told[index]["kind"] for index in order)
        self.safety = {
            "share": share,
            "wanted": wanted,
            "available": len(available),
            "rows": len(order),
            "kinds": {kind: kinds[kind] for kind in safety.KINDS if kinds[kind]},
        }

    def available(self) -> np.ndarray:
        """Numbers of the safety rows that may be trained beside the others: none that stands there already, that a
        pair or a label warns of, or whose question, or nearly the same one, is kept out of training."""
        rows = np.flatnonzero(self.table["kind"] == SAFETY)
        rows = rows[np.unique(self.table["row"][rows], return_index=True)[1]]
        others = np.flatnonzero(self.table["kind"] != SAFETY)
        held = np.isin(self.fate, (VALIDATION, FILES["questions"], FILES["evaluation"]))
        held = np.flatnonzero(held | (self.table["kind"] == REFERENCE))
        bad = self.table["bad"][others]
        unfit = np.isin(self.table["row"][rows], self.table["row"][others])
        unfit |= np.isin(self.table["good"][rows], bad[bad != 0])
        unfit |= np.isin(self.table["question"][rows], self.table["question"][held])
        return np.sort(rows[~unfit & ~self.alike_to(rows, held)])

    def alike_to(self, rows: np.ndarray, held: np.ndarray) -> np.ndarray:
        """For each of the rows whether it says almost the same as one of those that are held out."""
        signatures, marked = self.signatures(), np.flatnonzero(self.table["alike"])
        if signatures is None or not len(rows):
            return np.zeros(len(rows), bool)
        chosen = np.flatnonzero(np.isin(marked, np.r_[rows, held]))
        groups = clusters.Groups(len(chosen))
        for one, other in clusters.pairs(signatures, self.data["near_duplicates"], chosen):
            groups.join(one, other)
        names = groups.names()
        kept = names[np.isin(marked[chosen], held)]
        return np.isin(rows, marked[chosen][np.isin(names, kept)])

    # -- writing ------------------------------------------------------------------------------------------

    def values(self, row: int) -> dict:
        return json.loads(self.line(row))

    def line(self, row: int) -> bytes:
        self.spool.flush()
        self.spool.seek(int(self.table["place"][row]))
        return self.spool.read(int(self.table["size"][row]))

    def write(self) -> None:
        """The splits that have rows, and dropped.jsonl."""
        self.spool.flush()
        self.spool.seek(0)
        sizes, fates = self.table["size"].tolist(), self.fate.tolist()
        kto = FILES["kto"]
        open_files: dict[int, object] = {}
        try:
            for size, fate in zip(sizes, fates, strict=True):
                line = self.spool.read(size)
                if fate >= 0 and fate != kto:
                    if fate not in open_files:
                        open_files[fate] = (self.folder / f"{_name(fate)}.jsonl").open("wb", buffering=1 << 20)
                    open_files[fate].write(line)
        finally:
            for handle in open_files.values():
                handle.close()
        if len(self.kto):
            with (self.folder / "kto.jsonl").open("wb") as handle:
                handle.writelines(self.line(row) for row in self.kto.tolist())
        for row in np.flatnonzero(np.isin(self.fate, list(REASONS))).tolist():
            self.tell(row)
        self.count()
        self.close()

    def tell(self, row: int) -> None:
        fate, values = int(self.fate[row]), self.values(row)
        origin = self.values(int(self.blame[row]))["origin"] if "{origin}" in REASONS[fate] else ""
        answers = [values[name][-1]["content"] for name in ("completion", "chosen", "rejected") if name in values]
        text = "\n".join(answers)
        self.counts["lost"] += len(text) if fate in LOST else 0
        reason = REASONS[fate].format(origin=origin)
        self.dropped.add({"origin": values["origin"], "reason": reason, "characters": len(text), "text": text})

    def count(self) -> None:
        for name in FILES:
            self.rows[name] = self.rows_of(name)
        trained = (self.fate >= TRAIN) & (self.fate != FILES["evaluation"])
        self.lengths = np.sort(self.table["tokens"][trained])

    def close(self) -> None:
        for handle, name in ((self.spool, ".rows"), (self.marks, ".signatures")):
            handle.close()
            (self.folder / name).unlink(missing_ok=True)
        self.dropped.close(self.folder / "dropped.jsonl")


class Dropped:
    """What is left out, on disk as it comes; in memory only how often each reason was given, and the last one."""

    def __init__(self, path: Path):
        self.path, self.handle = path, path.open("w", encoding="utf-8", newline="\n")
        self.count, self.reasons, self.last = 0, Counter(), ""

    def add(self, entry: dict, rule: str | None = None) -> None:
        """`entry`: origin, reason, characters, text. `rule` where the reason is not worth counting by itself."""
        self.handle.write(files.json_line(entry))
        self.count += 1
        self.last = entry["reason"]
        self.reasons[rule or rule_of(self.last)] += 1

    def close(self, target: Path) -> None:
        """Give the list its name, if it holds anything."""
        self.handle.close()
        if self.count and self.path.exists():
            self.path.rename(target)
        self.path.unlink(missing_ok=True)


def rule_of(reason: str) -> str:
    """The rule behind a reason: without the place, the length or the name in it."""
    reason = re.sub(r"a row of \d+ tokens", "a row", reason)
    reason = re.sub(r"(the same (row|scenario) as|warned of at|text of an evaluation set:) .*", r"\1 ...", reason)
    return re.sub(r"almost the same as .*, which", "almost the same as ..., which", reason)


def _name(fate: int) -> str:
    return next(name for name, value in FILES.items() if value == fate)


def _runs(values: np.ndarray):
    """For each set of equal values its first place and all its places."""
    if len(values) == 0:
        return
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    for begin, end in zip(begins, [*begins[1:], len(ordered)], strict=True):
        yield order[begin], order[begin:end]
