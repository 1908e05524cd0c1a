"""The benchmarks: what the harness measures is plausible, and both claims run. No test looks at a time from above."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
import train
import train_growth
from forge import chat, config, files, graph, manifest
from forge.errors import ForgeError
from harness import Figures
from train import Trained

ROOT = Path(__file__).resolve().parents[1]
KEYS = ["name", "ours", "reference", "ratio", "peak_mb", "rows"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# -- measuring --------------------------------------------------------------------------------------------


def test_seconds_and_memory_of_a_command(tmp_path):
    code = "import time; held = b'x' * 100_000_000; time.sleep(0.3)"
    [figures] = harness.measure(python(code), tmp_path, "hold")
    assert figures.name == "hold"
    assert figures.seconds >= 0.3
    assert figures.peak_mb >= 100


def test_memory_of_a_descendant_counts(tmp_path):
    child = "import time; held = b'x' * 100_000_000; time.sleep(0.3)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    [figures] = harness.measure(python(code), tmp_path, "parent")
    assert figures.peak_mb >= 100


def test_bytes_written_by_a_descendant_count(tmp_path):
    before = harness.written_mb(os.getpid())
    with (tmp_path / "probe").open("wb") as probe:
        probe.write(b"x" * 2_000_000)
    if harness.written_mb(os.getpid()) < before + 2:
        pytest.skip("the kernel counts no writes to this file system")
    child = "open('file', 'wb').write(b'x' * 5_000_000)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    [figures] = harness.measure(python(code), tmp_path, "write")
    assert figures.written_mb >= 5
    assert (tmp_path / "file").stat().st_size == 5_000_000


def test_parts_have_figures_of_their_own(tmp_path):
    code = """
import time
time.sleep(0.1)
print("benchmark part small", flush=True)
time.sleep(0.2)
print("benchmark part large", flush=True)
held = b"x" * 100_000_000
time.sleep(0.4)
"""
    small, large = harness.measure(python(code), tmp_path, "chain")
    assert (small.name, large.name) == ("small", "large")
    assert small.seconds >= 0.3  # with what came before the first part
    assert large.seconds >= 0.4
    assert large.peak_mb >= small.peak_mb + 90


def test_a_command_sees_no_setting_of_make(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "n")
    monkeypatch.setenv("CONFIG", "other.yaml")
    code = "import os; assert not {'MAKEFLAGS', 'CONFIG'} & set(os.environ); print('clean')"
    harness.measure(python(code), tmp_path, "environment", says="clean")


def test_nothing_is_left_running(tmp_path):
    code = "import subprocess; print('pid', subprocess.Popen(['sleep', '60']).pid, file=open('pid', 'w'))"
    harness.measure(python(code), tmp_path, "leave")
    pid = (tmp_path / "pid").read_text(encoding="utf-8").split()[1]
    deadline = time.time() + 30  # a kill is not done at once
    while running(pid) and time.time() < deadline:
        time.sleep(0.01)
    assert not running(pid)


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "wanted", "cause"),
    [
        ("print('the reason'); raise SystemExit(3)", {}, "ended with 3"),
        ("print('the reason')", {"fails": True}, "ended with 0"),
        ("print('the reason')", {"says": "done"}, "ended with 0 and without 'done'"),
    ],
)
def test_a_command_that_does_not_do_its_job_is_an_error(tmp_path, capsys, code, wanted, cause):
    with pytest.raises(ForgeError) as caught:
        harness.measure(python(code), tmp_path, "job", **wanted)
    assert caught.value.cause.endswith(cause)
    assert capsys.readouterr().err == "the reason\n"


# -- turns, medians, report ---------------------------------------------------------------------------------


def test_the_sides_take_turns():
    order = []

    def side(name: str):
        return lambda: order.append(name) or [Figures(name, len(order))]

    rounds = harness.alternate([side("ours"), side("reference")], 3)
    assert order == ["ours", "reference"] * 3
    assert [[parts[0].seconds for parts in found] for found in rounds] == [[1, 3, 5], [2, 4, 6]]


def test_medians_range_and_ratio():
    ours = [Figures("a", seconds, peak, 0.0) for seconds, peak in ((3.0, 10.0), (1.0, 30.0), (2.0, 20.0))]
    row = harness.row("a", ours, [Figures("a", 4.0, 5.0, 6.0), Figures("a", 6.0, 7.0, 8.0)])
    assert (row["ours"], row["reference"], row["ratio"]) == (2.0, 5.0, 0.4)
    assert row["detail"]["ours"] == {"seconds": 2.0, "peak_mb": 20.0, "written_mb": 0.0, "min": 1.0, "max": 3.0, "n": 3}
    assert row["detail"]["reference"]["peak_mb"] == 6.0


def test_a_total_adds_seconds_and_bytes_and_takes_the_highest_peak():
    total = harness.total("both", [Figures("a", 1.0, 30.0, 2.0), Figures("b", 2.0, 10.0, 3.0)])
    assert total == Figures("both", 3.0, 30.0, 5.0)


def test_the_table_and_the_line(capsys):
    rows = [
        harness.row("train", [Figures("train", 2.0, 30.0, 4.0)], [Figures("train", 4.0, 20.0, 5.0)]),
        harness.row("validate", [Figures("validate", 1.0, 10.0, 0.0)], []),
    ]
    harness.report("claim", rows, headline=rows[0])
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[-3].split()) == "train 2.00 2.00..2.00 (1) 4.00 4.00..4.00 (1) 0.500 30 / 20 4 / 5"
    assert " ".join(lines[-2].split()) == "validate 1.00 1.00..1.00 (1) - - - 10 / - 0 / -"
    line = json.loads(lines[-1])
    assert list(line) == KEYS
    assert [line[key] for key in KEYS[:5]] == ["claim", 2.0, 4.0, 0.5, 30.0]
    assert [row["ratio"] for row in line["rows"]] == [0.5, None]


def test_output_is_kept_where_it_is_wanted(tmp_path):
    harness.measure(python("print('one'); print('two')"), tmp_path, "print", log=tmp_path / "log")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\ntwo\n"


def test_a_clone_has_nothing_made_and_an_environment(tmp_path):
    root = harness.clone(tmp_path / "a clone")
    assert not any((root / name).exists() for name in ("models", "build", "dataset_package", ".git"))
    harness.measure(["make", "VENV=venv", "status"], root, "status", says="make model")


# -- a project to measure -------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A folder of 20 training rows and its record."""
    files.write_jsonl(tmp_path / "train.jsonl", [{"id": number} for number in range(20)])
    files.write_jsonl(tmp_path / "validation.jsonl", [{"id": 20}])
    names = ["train.jsonl", "validation.jsonl"]
    manifest.write(tmp_path / "manifest.json", {"subject": manifest.describe(tmp_path, names), "inputs": []})
    return tmp_path


def test_rows_are_kept_in_their_order_and_the_record_is_right(dataset):
    harness.keep_rows(dataset, 8, seed=1)
    kept = [row["id"] for row in files.read_jsonl(dataset / "train.jsonl")]
    assert (len(kept), kept) == (8, sorted(set(kept)))
    record = manifest.read(dataset / "manifest.json")
    manifest.verify(dataset / "manifest.json", record)
    assert [item["name"] for item in record["subject"]] == ["train.jsonl", "validation.jsonl"]


def test_another_seed_keeps_other_rows(dataset):
    whole = files.read_jsonl(dataset / "train.jsonl")
    found = []
    for seed in (1, 1, 2):
        files.write_jsonl(dataset / "train.jsonl", whole)
        harness.keep_rows(dataset, 8, seed)
        found.append((dataset / "train.jsonl").read_text(encoding="utf-8"))
    assert found[0] == found[1] != found[2]


def test_too_few_rows_are_refused(dataset):
    with pytest.raises(ForgeError, match="21 training rows are wanted, the data has 20"):
        harness.keep_rows(dataset, 21, seed=1)


def test_a_plain_script_gets_what_the_libraries_know():
    values = harness.resolved(config.load(ROOT / "config/training_config.yaml"))
    choices = {"dtype": "float32", "optimizer": "adamw_torch", "gradient_checkpointing": False}
    found = harness.plain(values, choices)
    assert found["quantization"]["bnb_4bit_compute_dtype"] == "float32"
    assert (found["training"]["optim"], found["training"]["gradient_checkpointing"]) == ("adamw_torch", False)
    assert "auto" not in [*found["quantization"].values(), *found["training"].values()]
    assert not {"stages", "packing", "unpack"} & {*found["training"], *found["quantization"]}


# -- training: equal work, the report -------------------------------------------------------------------------


def trained(side: str, seconds: float, tokens: int = 1000, steps: int = 2, loss: float = 2.0) -> Trained:
    return Trained(side, Path(side), Figures(side, seconds + 5, 100 * seconds), seconds, steps, tokens, loss)


@pytest.mark.parametrize(
    ("item", "cause"),
    [
        (trained("trl", 1, tokens=1011), "trl trained 1011 tokens, ours 1000"),
        (trained("tunekit", 1, tokens=989), "tunekit trained 989 tokens, ours 1000"),
        (trained("trl", 1, steps=3), "trl took 3 steps, ours 2"),
    ],
)
def test_unequal_work_is_refused(item, cause):
    with pytest.raises(ForgeError) as caught:
        train.require_equal_work([[trained("ours", 1), trained("trl", 1)], [trained("ours", 1), item]])
    assert caught.value.cause == cause


def test_work_within_a_percent_is_equal():
    train.require_equal_work([[trained("ours", 1), trained("trl", 1, tokens=1010), trained("tunekit", 1, steps=1)]])


def test_the_report_of_training(capsys):
    sides = [
        [trained("ours", 2, loss=1.9), trained("ours", 4, loss=2.1), trained("ours", 5, loss=2.0)],
        [trained("trl", 10, loss=1.9), trained("trl", 8, loss=2.0), trained("trl", 20, loss=2.1)],
    ]
    train.report(sides, base_loss=3.0)
    *_, ours, reference, last = capsys.readouterr().out.splitlines()
    assert " ".join(ours.split()) == "ours 250 200..500 (3) - 2 4.0 9.0 400 2.0000 -"
    assert " ".join(reference.split()) == "trl 100 50..125 (3) 2.50 x 2 10.0 15.0 1000 2.0000 +0.00%"
    line = json.loads(last)
    assert list(line) == KEYS
    assert [line[key] for key in KEYS[:5]] == ["train", 250.0, 100.0, 2.5, 400.0]
    [row] = line["rows"]
    assert (row["whole_ratio"], row["loss_difference"]) == (round(15 / 9, 4), 0.0)


# -- growth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [64, 300])
def test_rows_are_filled_to_their_length(tmp_path, tiny_tokenizer, length):
    train_growth.write_rows(tmp_path / "rows.jsonl", tiny_tokenizer, length, 5)
    rows = files.read_jsonl(tmp_path / "rows.jsonl")
    lengths = [len(chat.encode_row(tiny_tokenizer, row)["input_ids"]) for row in rows]
    assert len({row["completion"][0]["content"] for row in rows}) == 5
    assert length - 8 <= min(lengths) <= max(lengths) <= length


def test_rows_shorter_than_the_template_are_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(ForgeError, match="shorter than the chat template's own words"):
        train_growth.write_rows(tmp_path / "rows.jsonl", tiny_tokenizer, 16, 1)


def test_the_plot_is_the_same_for_the_same_figures(tmp_path):
    lengths = [
        {"length": 128, "seconds_a_step": 5.0, "tokens_per_second": 409.6},
        {"length": 2048, "seconds_a_step": 7.0, "tokens_per_second": 292.6},
    ]
    counts = [{"count": 100, "seconds": 12.0}, {"count": 10_000, "seconds": 300.0}]
    for name in ("one.svg", "two.svg"):
        train_growth.draw(tmp_path / name, lengths, counts)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert {"410 tok/s", "293 tok/s", "12 s", "300 s", "2,048", "10,000"} <= set(re.findall(r">([^<>]+)</text>", text))


# -- the claims -----------------------------------------------------------------------------------------------


def bench(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "bench" / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=1500)


def result(done: subprocess.CompletedProcess) -> tuple[list[str], dict]:
    """First words of the table's lines, and the last line."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    line = json.loads(lines[-1])
    assert list(line) == KEYS
    return lines, line


@pytest.mark.parametrize("script", ["startup.py", "all.py", "train.py"])
@pytest.mark.parametrize("repeat", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_of_measurements_is_refused(tmp_path, script, repeat):
    done = bench(script, f"--repeat={repeat}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"argument --repeat: '{repeat}' is no whole number above 0" in done.stderr


@pytest.mark.parametrize("script", ["all.py", "train.py", "train_growth.py"])
def test_a_wrong_config_is_two_lines(tmp_path, script):
    done = bench(script, "--config", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "FAIL none.yaml does not exist\n  do name an existing file: make all CONFIG=config/training_config.yaml\n"
    )


@pytest.mark.slow
def test_startup(tmp_path):
    lines, line = result(bench("startup.py", "--repeat", "1", cwd=tmp_path))
    assert line["name"] == "startup"
    assert [row["name"] for row in line["rows"]] == ["help", "no-op", "config error"]
    noop = line["rows"][1]
    assert (line["ours"], line["reference"]) == (noop["ours"], noop["reference"])
    assert min(line[key] for key in ("ours", "reference", "ratio", "peak_mb")) > 0
    assert [text[:6].strip() for text in lines[-4:-1]] == ["help", "no-op", "config"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1600)  # 14 processes that load torch: a busy machine takes long
def test_data(checkout, write_config):
    write_config(checkout)
    lines, line = result(bench("data.py", "--sizes", "3", "70", "--config", "config/test.yaml", cwd=checkout))
    assert [row["files"] for row in line["rows"]] == [3, 70]  # one process, and several
    last = line["rows"][-1]
    assert last["mb"] >= 0.7
    assert (line["name"], line["ours"], line["reference"]) == ("data", last["ours"], last["reference"])
    assert min(last.values()) > 0  # of three files in a busy moment the MB a second are 0.00
    assert [text.split()[0] for text in lines[-3:-1]] == ["3", "70"]


@pytest.mark.slow
@pytest.mark.timeout(1600)  # 14 processes that load torch: a busy machine takes long
def test_all_phases(checkout, write_config):
    write_config(
        checkout,
        training={"eval_steps": 100, "save_steps": 100},
        evaluation={
            "heldout_rows": 2,
            "questions": 1,
            "max_new_tokens": 8,
            "minimum_stop_rate": 0,
            "pairs": 2,
            "answers": 1,
        },
    )
    before = sorted(checkout.iterdir())
    lines, line = result(bench("all.py", "--config", "config/test.yaml", "--epochs", "1", cwd=checkout))
    names = [row["name"] for row in line["rows"]]
    assert names == [*(row.name for row in graph.PHASES), "total of both", "total of ours"]
    table = lines[-len(names) - 1 : -1]
    assert [text for name, text in zip(names, table, strict=True) if not text.startswith(name)] == []
    compared = [row["name"] for row in line["rows"] if row["reference"] is not None]
    assert compared == ["model", "train", "merge", "gguf", "total of both"]
    both = next(row for row in line["rows"] if row["name"] == "total of both")
    assert (line["name"], line["ours"], line["reference"]) == ("all", both["ours"], both["reference"])
    assert sorted(checkout.iterdir()) == before


@pytest.mark.slow
@pytest.mark.timeout(1600)  # 6 processes that load torch
def test_train(checkout, write_config):
    write_config(checkout)
    before = sorted(checkout.iterdir())
    sides = ["trl", "tunekit"]
    arguments = ["--config", "config/test.yaml", "--steps", "1", "--repeat", "1", "--sides", *sides]
    lines, line = result(bench("train.py", *arguments, cwd=checkout))
    rows = {row["name"]: row for row in line["rows"]}
    assert list(rows) == sides
    assert (line["name"], line["ours"], line["reference"]) == ("train", rows["trl"]["ours"], rows["trl"]["reference"])
    assert {row["detail"]["reference"]["steps"] for row in rows.values()} == {1}
    assert len({row["detail"]["reference"]["loss"] for row in rows.values()}) > 1
    assert min(row["detail"][side]["loss"] for row in rows.values() for side in ("ours", "reference")) > 0
    assert [text.split()[0] for text in lines[-len(rows) - 2 : -1]] == ["ours", *rows]
    assert sorted(checkout.iterdir()) == before


@pytest.mark.slow
@pytest.mark.timeout(1600)  # 8 processes that load torch
def test_train_growth(checkout, write_config, tmp_path):
    write_config(checkout)
    plot = tmp_path / "plot.svg"
    arguments = ["--lengths", "64", "256", "--rows", "9", "--steps", "1", "--plot", str(plot)]
    lines, line = result(bench("train_growth.py", "--config", "config/test.yaml", *arguments, cwd=checkout))
    assert [(row["length"], row["rows_a_step"]) for row in line["rows"][:2]] == [(64, 32), (256, 8)]
    assert [row["count"] for row in line["rows"][2:]] == [9]
    assert min(value for row in line["rows"] for value in row.values()) > 0
    paces = [row["tokens_per_second"] for row in line["rows"][:2]]
    assert [line["reference"], line["ours"]] == paces
    assert lines[-2].split()[0] == "9"
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
