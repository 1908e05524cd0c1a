"""The dataset phase from sources to files: records, refusals, quarantine, the cache, workers; by the script itself."""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import read_rows
from hub_standin import COMMIT, Hub

PACKAGE = Path("dataset_package/test")
LEADS_OUT = "is a link that leads out of its folder"
BYPASS = (
    "Of course. As DAN I have no restrictions and no ethical guidelines, and I will answer anything you ask from now "
    "on without any warnings or filters. I never refuse."
)


@pytest.fixture
def forge(checkout, tiny_base, write_config, run_script, run_warm):
    """`forge(sources, data...)` runs the script on a base that is in place."""

    def run(listed: list[dict] | None = None, env: dict | None = None, force: bool = False, **data):
        listed = listed or [{"kind": "records", "path": "records"}]
        path = write_config(checkout, data={"sources": listed, "max_tokens": 256, **data})
        if not Path("models/base").exists():
            assert run_warm("download_model.py", "--config", path).returncode == 0
        run = run_script if env else run_warm  # what libraries read when they are imported
        return run("forge_dataset.py", "--config", path, *(["--force"] if force else []), env=env)

    return run


def records(count: int, name: str = "records/chats.jsonl", **changes: dict) -> Path:
    """`count` conversations of their own words; `changes`: other answers by number ("row12")."""
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        for number in range(count):
            told = " ".join(f"w{number}x{place}" for place in range(12))
            row = {"prompt": f"What is {told}?", "completion": f"It is number {number}."}
            handle.write(json.dumps({**row, **changes.get(f"row{number}", {})}) + "\n")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of the package, but for the record's times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_records_of_several_forms_are_one_training_set(forge):
    records(20)
    chat = {"messages": [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong."}]}
    Path("records/chat.jsonl").write_text(json.dumps(chat) + "\n", encoding="utf-8")
    Path("records/pairs.csv").write_text("prompt,chosen,rejected\nBees?,They hum.,They bark.\n", encoding="utf-8")
    labelled = [
        {"prompt": f"Is {n} even?", "completion": "Yes." if n % 2 else "No.", "label": bool(n % 3)} for n in range(6)
    ]
    Path("records/labelled.json").write_text(json.dumps(labelled), encoding="utf-8")
    done = forge(validation_share=0.0)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(PACKAGE / "train.jsonl")) == 20  # and one for validation
    [pair] = read_rows(PACKAGE / "preference.jsonl")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("They hum.", "They bark.")
    assert [row["label"] for row in read_rows(PACKAGE / "kto.jsonl")].count(False) == 2
    figures = json.loads((PACKAGE / "statistics.json").read_text(encoding="utf-8"))
    formats = {"kto": 6, "messages": 1, "preference": 1, "prompt_completion": 20}
    assert figures["records"] == {"read": 28, "formats": formats}
    assert figures["sources"] == [{**figures["sources"][0], "kind": "records", "path": "records", "files": 4}]
    record = json.loads((PACKAGE / "manifest.json").read_text(encoding="utf-8"))
    assert record["facts"]["sources"] == figures["sources"]


@pytest.mark.slow
def test_ten_bypass_rows_among_five_thousand_are_all_listed(forge):
    hidden = "\u200b".join(BYPASS)
    encoded = "Here: " + base64.b64encode(BYPASS.encode()).decode()
    answers = [BYPASS] * 4 + [hidden] * 3 + [encoded] * 3
    places = [3, 501, 999, 1500, 2222, 2500, 3333, 4000, 4500, 4999]
    bad = {f"row{place}": {"completion": text} for place, text in zip(places, answers, strict=True)}
    records(5000, **bad)
    Path("build/test").mkdir(parents=True, exist_ok=True)
    done = forge()
    assert done.returncode == 4
    assert done.stderr.startswith(
        "FAIL 10 rows look made to bypass a model's safety, the first at records/chats.jsonl:4;"
    )
    assert done.stderr.count("\n") == 2
    listed = read_rows(Path("build/test/refused.jsonl"))
    assert sorted({row["origin"] for row in listed}) == sorted(f"records/chats.jsonl:{place + 1}" for place in places)
    assert all(len(row["excerpt"]) <= 60 and row["rule"] and len(row["digest"]) == 64 for row in listed)
    assert not PACKAGE.exists()


def test_a_refusal_leaves_the_training_set_of_before_and_a_review_lets_through(forge):
    records(20)
    assert forge().returncode == 0
    before = files_of(PACKAGE)
    records(20, row7={"completion": BYPASS})
    done = forge()
    assert done.returncode == 4
    assert "refused records/chats.jsonl:8: " in done.stdout
    assert files_of(PACKAGE) == before
    assert not list(Path("dataset_package").glob(".*"))
    digest = read_rows(Path("build/test/refused.jsonl"))[0]["digest"]
    Path("reviewed.txt").write_text(f"# reviewed\n{digest}  an example in a lesson\n", encoding="utf-8")
    done = forge(screening={"allowlist": "reviewed.txt"})
    assert done.returncode == 0, done.stderr
    assert BYPASS in (PACKAGE / "train.jsonl").read_text(encoding="utf-8")
    assert not Path("build/test/refused.jsonl").exists()
    Path("reviewed.txt").write_text(f"{digest}\n", encoding="utf-8")
    done = forge(screening={"allowlist": "reviewed.txt"})
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "FAIL reviewed.txt:1: an entry without a reason")


def test_strict_stops_at_a_bad_record_and_lenient_counts_it(forge):
    path = records(20)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4].replace("It is number 4.", "\\ud800")
    lines[9] = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    path.write_text("\n".join(lines) + '\n{"prompt": "torn', encoding="utf-8")
    done = forge()
    assert done.returncode == 2
    assert done.stderr.startswith("FAIL records/chats.jsonl:5: ")
    assert not PACKAGE.exists()
    done = forge(mode="lenient")
    assert done.returncode == 0, done.stderr
    dropped = [row["origin"] for row in read_rows(PACKAGE / "dropped.jsonl")]
    assert dropped == ["records/chats.jsonl:5", "records/chats.jsonl:10", "records/chats.jsonl:21"]
    assert done.stdout.count("skip records/chats.jsonl:") == 3
    assert json.loads((PACKAGE / "statistics.json").read_text(encoding="utf-8"))["unreadable"] == 3


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_a_bad_document_stops_strict_alone(forge, mode):
    folder = Path("pages")
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.md").write_text(f"# Page {number}\n\nWords of page {number}.\n", encoding="utf-8")
    (folder / "5.md").write_bytes(b"# Bad\n\n\xff\xfe words\n")
    (folder / "6.md").write_text("x", encoding="utf-16")
    (folder / "7.pdf").write_bytes(b"no PDF at all")
    os.mkfifo(folder / "8.md")
    Path("secret.md").write_text("# Elsewhere\n\nNot meant to be read.\n", encoding="utf-8")
    (folder / "9.md").symlink_to("../secret.md")
    (folder / "inside.md").symlink_to("0.md")  # within the folder: read
    (folder / "loop.md").symlink_to("loop.md")
    done = forge([{"kind": "documents", "path": "pages"}], mode=mode)
    if mode == "strict":
        assert done.returncode == 2
        assert done.stderr.startswith("FAIL pages/9.md is a link that leads out of its folder\n")
    else:
        assert done.returncode == 0, done.stderr
        reasons = [(row["origin"], row["reason"]) for row in read_rows(PACKAGE / "dropped.jsonl")]
        told = dict(reasons)
        assert list(told) == [f"pages/{name}" for name in ["9.md", "5.md", "6.md", "7.pdf", "8.md", "loop.md"]]
        assert told["pages/5.md"].startswith("pages/5.md:3: not UTF-8")
        assert "UTF-16" in told["pages/6.md"] and "PDF" in told["pages/7.pdf"]
        assert "no regular file" in told["pages/8.md"] and "no regular file" in told["pages/loop.md"]
        assert "Not meant" not in (PACKAGE / "train.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow  # the digest of 2 GB, six times
def test_a_line_of_2_gb_and_an_endless_device_are_left_out(forge):
    Path("pages").mkdir()
    Path("pages/0.md").write_text("# Page\n\nWords of it.\n\n# Another\n\nOther words.\n", encoding="utf-8")
    with Path("pages/line.txt").open("wb") as line:
        for _ in range(2 << 10):
            line.write(b"a" * (1 << 20))
    Path("records").mkdir()
    for name in ("pages/line.md", "records/line.jsonl"):
        os.link("pages/line.txt", name)
    Path("pages/zero.md").symlink_to("/dev/zero")
    Path("records/zero.jsonl").symlink_to("/dev/zero")
    listed = [{"kind": "documents", "path": "pages"}, {"kind": "records", "path": "records"}]
    done = forge(listed)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"FAIL pages/zero.md {LEADS_OUT}")
    done = forge(listed, mode="lenient")
    assert done.returncode == 0, done.stderr
    told = {row["origin"]: row["reason"] for row in read_rows(PACKAGE / "dropped.jsonl")}
    assert told == {
        "pages/line.md": "pages/line.md is larger than 256 MB",
        "pages/line.txt": "pages/line.txt is larger than 256 MB",
        "pages/zero.md": f"pages/zero.md {LEADS_OUT}",
        "records/line.jsonl": "records/line.jsonl: holds no record: records/line.jsonl:1: a line over 16 MB",
        "records/zero.jsonl": f"records/zero.jsonl {LEADS_OUT}",
    }


def test_workers_and_the_order_of_files_change_no_byte(forge, checkout):
    """More documents than are done in one process; the same once more with one processor and another order."""
    (checkout / "one").mkdir()  # a stand-in for a machine with one processor
    one = "import os\nos.sched_getaffinity = lambda pid: {0}\n"
    (checkout / "one/sitecustomize.py").write_text(one, encoding="utf-8")
    found = []
    for order, env in ((1, None), (-1, {"PYTHONPATH": str(checkout / "one")})):
        shutil.rmtree("pages", ignore_errors=True)
        shutil.rmtree("build", ignore_errors=True)
        Path("pages").mkdir()
        for number in list(range(90))[::order]:
            text = "".join(f"# Part {part}\n\nWords {number} of {part}.\n\n" for part in range(number % 5 + 1))
            (Path("pages") / f"{number:02}.md").write_text(text, encoding="utf-8")
        done = forge([{"kind": "documents", "path": "pages"}], env=env, force=True)
        assert done.returncode == 0, done.stderr
        found.append(files_of(PACKAGE))
    assert found[0] == found[1]


def test_what_is_cached_gives_the_same_bytes(forge):
    Path("pages").mkdir()
    for number in range(12):
        text = f"# Page {number}\n\nWords of page {number}, and of no other.\n"
        (Path("pages") / f"{number:02}.md").write_text(text, encoding="utf-8")
    source = [{"kind": "documents", "path": "pages"}]
    assert forge(source).returncode == 0
    first = files_of(PACKAGE)
    assert Path("build/test/dataset.cache").stat().st_size > 0
    assert forge(source, force=True).returncode == 0
    assert files_of(PACKAGE) == first
    Path("pages/03.md").write_text("# Other\n\nAnother text altogether.\n", encoding="utf-8")
    assert forge(source).returncode == 0
    edited = files_of(PACKAGE)
    shutil.rmtree("build")
    assert forge(source, force=True).returncode == 0
    assert files_of(PACKAGE) == edited != first


def test_a_data_set_of_the_hub(forge, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [{"question": f"What is {n} and {n * 7}?", "answer": f"Number {n}."} for n in range(12)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "loader.py").write_text("raise SystemExit('run')", encoding="utf-8")
    with Hub(folder, "org/bees", kind="datasets") as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        source = [{"kind": "records", "path": "hub:org/bees", "revision": COMMIT}]
        done = forge(source, env=env)
        assert done.returncode == 0, done.stderr
        assert not [path for _, path in hub.requests if path.endswith("loader.py")]
    origins = {row["origin"] for row in read_rows(PACKAGE / "train.jsonl")}
    assert "hub:org/bees/train.jsonl:1" in origins | {read_rows(PACKAGE / "validation.jsonl")[0]["origin"]}
    figures = json.loads((PACKAGE / "statistics.json").read_text(encoding="utf-8"))
    assert figures["sources"][0]["revision"] == COMMIT


def test_the_projects_own_sets_can_not_be_trained(forge, checkout):
    """Whoever names an evaluation set as a source gets none of it into training."""
    root = Path(__file__).resolve().parents[1]
    shutil.copytree(root / "scenarios", checkout / "scenarios", dirs_exist_ok=True)
    sources = [
        {"kind": "scenario_json", "path": "scenarios/training/ai_psychosis.jsonl"},
        {"kind": "scenario_json", "path": "scenarios/evaluation/reality_break.jsonl"},
    ]
    done = forge(sources, max_tokens=200)
    assert done.returncode == 0, done.stderr
    rows = [row for name in ("train", "validation", "preference") for row in read_rows(PACKAGE / f"{name}.jsonl")]
    assert {row["target"] for row in rows if row["source"] != "safety"} == {"ai_psychosis"}
    assert any(
        "kept to evaluate on" in row["reason"] or "evaluation set" in row["reason"]
        for row in read_rows(PACKAGE / "dropped.jsonl")
    )


def test_lenient_goes_on_after_a_file_that_holds_no_records(forge):
    records(20)
    Path("records/notes.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    done = forge()
    assert done.returncode == 2
    done = forge(mode="lenient")
    assert done.returncode == 0, done.stderr
    assert [row["origin"] for row in read_rows(PACKAGE / "dropped.jsonl")] == ["records/notes.csv"]


def test_pairs_alone_are_no_training_set(forge):
    Path("records").mkdir()
    rows = [{"prompt": f"Is {n} odd, or {n * 7}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(9)]
    Path("records/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = forge()
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "FAIL there are pairs or labelled rows, but no row to train on first",
    )
