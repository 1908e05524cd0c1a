"""Whatever stands in a file that a user or another program wrote: it is read, or refused by a declared error."""

import argparse
import contextlib
import copy
import json
import math
import re
import sqlite3
from pathlib import Path

import create_modelfile
import harm
import pytest
import yaml
from forge import config, files, graph, manifest, phase, schema
from forge.errors import ForgeError
from forge.reading import scenarios
from hypothesis import example, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
WHOLE = yaml.safe_load((ROOT / "config/training_config.yaml").read_text(encoding="utf-8"))
pytestmark = pytest.mark.timeout(600 + 60 * harm.RUNS)
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 10**400, 1e308, -0.0]))
SCALAR = st.one_of(st.none(), st.booleans(), NUMBER, st.text(max_size=20))
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def places(value: object, here: tuple = ()) -> list[tuple]:
    """The place of everything inside a value of JSON's kinds."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in [(*here, key), *places(item, (*here, key))]]


@st.composite
def changed(draw, whole: dict) -> dict:
    """The whole with one to three of its parts replaced, taken out, or joined by a key that nobody knows."""
    result = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(places(result) or [("x",)]))
        part = result
        for key in parents:
            part = part[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                part[last] = draw(VALUE)
            case "remove":
                del part[last]
            case "add" if isinstance(part, dict):
                part[draw(st.text(max_size=8))] = draw(VALUE)
        if not result:
            break
    return result


def only_declared(work, code: int) -> None:
    with contextlib.suppress(ForgeError):
        try:
            work()
        except ForgeError as error:
            assert error.code == code, error
            assert error.cause and error.remedy and "\n" not in error.cause + error.remedy
            raise


# -- the config ---------------------------------------------------------------------------------------------


def use_config(path: Path) -> None:
    loaded = config.load(path)
    for row in graph.PHASES:
        assert row.record(loaded.layout) and loaded.digest(row.name)


@harm.poison
@given(changed(WHOLE))
def test_a_config_of_any_values(tmp_path, values):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="replace")
    only_declared(lambda: use_config(path), 2)


@harm.poison
@given(st.one_of(st.binary(max_size=200), st.text(":-[]{}&*!|>#'\"\n\t ab1<", max_size=80).map(str.encode)))
def test_a_config_of_any_bytes(tmp_path, raw):
    path = tmp_path / "a.yaml"
    path.write_bytes(raw)
    only_declared(lambda: use_config(path), 2)


# -- records ------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(checkout, write_config) -> tuple[config.Config, dict]:
    """A config, and a record of its training as it would be."""
    loaded = config.load(write_config(checkout, base="org/tiny"))
    record = graph.BY_NAME["train"].record(loaded.layout)
    files.write_text(record.parent / "a.bin", "a")
    return loaded, {
        "subject": manifest.describe(record.parent, ["a.bin"]),
        "config": loaded.digest("train"),
        "settings": loaded.view("train"),
        "inputs": [{"name": "model", "sha256": "0" * 64}],
        "facts": {"steps": 1},
        "seconds": 1.5,
    }


@harm.poison
@given(st.data(), st.booleans())
def test_a_record_of_any_content(recorded, data, sealed):
    """Sealed, as a program would write it that means harm."""
    loaded, whole = recorded
    row = graph.BY_NAME["train"]
    record, content = row.record(loaded.layout), data.draw(changed(whole))
    if sealed:
        manifest.write(record, content)
    else:
        files.write_json(record, content)

    def use() -> None:
        read = manifest.read(record)
        manifest.digest(read)
        manifest.why_stale(row, loaded, None)
        manifest.verify(record, read)

    only_declared(use, 6)


@harm.poison
@given(st.binary(max_size=300))
def test_a_record_of_any_bytes(tmp_path, raw):
    path = tmp_path / "manifest.json"
    path.write_bytes(raw)
    only_declared(lambda: manifest.read(path), 6)


# -- scenarios ----------------------------------------------------------------------------------------------

CELL = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=30), st.binary(max_size=30))
SOURCE = {"kind": "scenario_forge", "targets": ["a"]}


def use_scenarios(path: Path) -> None:
    for item in scenarios.read(schema.ScenarioForge(**SOURCE, path=str(path)).model_dump()):
        if isinstance(item, scenarios.Scenario):
            _ = item.expected is None or scenarios.refusal(item)
            json.dumps([scenarios.pairs(item), scenarios.negatives(item)], allow_nan=False)
    scenarios.facts(path)


def database(path: Path, rows: list[tuple], ratings: list[tuple]) -> None:
    """As scenario-forge makes it, without the checks that its own program relies on."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.executescript(
            "CREATE TABLE scenarios (id INTEGER PRIMARY KEY, prompt, evaluation_target, success_criteria);"
            "CREATE TABLE ratings (id INTEGER PRIMARY KEY, scenario_id, rating, rated_at);"
        )
        named = "INSERT INTO {} VALUES (NULL, ?, ?, ?)"
        made.executemany(named.format("scenarios"), rows)
        made.executemany(named.format("ratings"), ratings)
        made.commit()


@harm.poison
@given(
    st.lists(st.tuples(CELL, st.one_of(CELL, st.just("a")), CELL), min_size=1, max_size=4),
    st.lists(st.tuples(st.one_of(CELL, st.just(1)), CELL, CELL), max_size=3),
)
def test_a_database_of_any_cells(tmp_path, rows, ratings):
    path = tmp_path / "scenarios.db"
    database(path, rows, ratings)
    only_declared(lambda: use_scenarios(path), 2)


@harm.poison
@example([(0.3203125, 128)], 1.0)  # in the text of the schema: SQLite's own message was no UTF-8
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8), st.floats(0, 1))
def test_a_database_of_changed_bytes(tmp_path, changes, cut):
    path = tmp_path / "scenarios.db"
    database(path, [("You woke up?", "a", '["kind"]')] * 3, [(1, 2, "2026-01-01")])
    raw = bytearray(path.read_bytes())
    for place, byte in changes:
        raw[min(len(raw) - 1, math.floor(place * len(raw)))] = byte
    path.write_bytes(raw[: math.ceil(len(raw) * cut)] if cut < 0.2 else raw)
    only_declared(lambda: use_scenarios(path), 2)


# -- the Modelfile ------------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(max_size=40), st.text("\"'\\\n\r\u2028\x0b$`{}() FROMSYTEAPL", max_size=40), st.just('"""\nFROM evil')
)


@harm.poison
@given(prompt=TEXT, version=TEXT, base=TEXT, token=TEXT)
def test_a_modelfile_of_any_texts(recorded, prompt, version, base, token):
    loaded, _ = recorded
    run = phase.Run(graph.BY_NAME["modelfile"], loaded, argparse.Namespace(force=True))
    run.settings["project"] |= {"system_prompt": prompt, "version": version}
    run.inputs = {"model": {"facts": {"base_model_name": base, "end_token": token}}}
    told = {"template": {"name": None, "reason": base}}
    files.write_json(loaded.layout.gate("verify-gguf") / "verdict.json", told)
    parameters = {"num_ctx": 512, "temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.05}

    def use() -> None:
        text = create_modelfile.fill(run, loaded.layout.gguf("Q4_K_M"), parameters)
        system = f'SYSTEM """{prompt}"""\n'
        outside = text.removesuffix(system) if prompt else text
        lines = re.split("[\r\n]", outside)  # what ends a line to Ollama
        words = [line.split(" ")[0] for line in lines if line and not line.startswith("#")]
        assert words == ["FROM"] + ["PARAMETER"] * 5, text

    only_declared(use, 2)
