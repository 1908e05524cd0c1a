"""The report page: what it tells, what it must not claim, what it never lets in; and as a real browser shows it."""

import json
import math
import os
import random
import re
import shutil
import string
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from finished import QUESTION, SIGNALS, Finished, said
from forge import files, graph, state
from forge.errors import ForgeError
from forge.reporting import answers, drawing, facts, page

HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "</style></q><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    '" onmouseover="alert(1)\' & </pre>',
    "half of a pair \ud83d, a zero \x00, right to left \u202e",
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def project(checkout, write_config) -> Finished:
    return Finished(write_config(checkout, base="org/tiny").relative_to(checkout))


def soup_of(project: Finished) -> BeautifulSoup:
    return BeautifulSoup(page.render(facts.gather(project.configuration)), "html.parser")


def words(soup: BeautifulSoup) -> str:
    return " ".join(soup.body.get_text(" ").split())


# -- what it tells ------------------------------------------------------------------------------------------------


def test_the_script_writes_the_page_and_nothing_else(project, run_script):
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    done = run_script("write_report.py", "--config", project.path, check=True)
    path = Path("report/test/index.html")
    assert done.stdout.splitlines() == [
        "PASS: All 5 gates passed, for the files that are there now.",
        f"wrote {path} ({files.size_text(path.stat().st_size)}): open it in a browser",
    ]
    text = path.read_bytes()
    assert len(text) < page.LARGEST
    new = {item for item in Path().rglob("*") if "__pycache__" not in item.parts} - set(before)
    assert new == {Path("report"), Path("report/test"), path}
    assert {item: item.stat().st_mtime_ns for item in before if item != Path()} == before | {}
    run_script("write_report.py", "--config", project.path, check=True)
    assert path.read_bytes() == text, "the same records give the same bytes"


def test_every_part_stands_on_the_page_the_verdict_first(project):
    soup = soup_of(project)
    assert [heading.get_text() for heading in soup.find_all("h2")] == [
        "Training",
        "Evaluation",
        "Fidelity of the files",
        "Answers side by side",
        "Data",
        "Time and memory",
        "Lineage",
        "To make it again",
    ]
    first = soup.body.find(["section", "h2", "table", "svg"])
    assert first["class"] == ["verdict", "good"] and first.strong.get_text() == "PASS"
    text = words(soup)
    for told in (
        "held-out questions answered with their fact 2 of 72 60 of 72 54 of 72",
        "259 rows, 132 steps, 83,428 tokens; validation loss 2.95 on 7 rows, kept step 132",
        "100% of held-out pairs preferred rightly",
        "preference margin nats a token PASS 0.189 0.139 to 0.239 -0.05",
        "31 +17 not scored",
        "ai_psychosis ai_religion 1 0.3 0",
        "mean KL divergence 0.0668",
        "documents documents 3 5555555555555555",
        "95th percentile 231",
        "3.42% of the text is in no row; replaced: email 2",
        "its question is kept out of training 1",
        "train done 12.5 956 MB",
        "git checkout 9f7ffab89799 make setup TORCH=cpu make all CONFIG=config/test.yaml",
        "learning_rate: 0.005",
    ):
        assert told in text, told


def test_answers_stand_side_by_side(project):
    card = next(card for card in soup_of(project).find_all(class_="card") if QUESTION in card.p.get_text())
    assert [side.get_text(" ", strip=True) for side in card.find_all(class_="side")] == [
        "base lacks the fact cut by the limit I am a language model.",
        "tuned has the fact I am Ember.",
        "Q4_K_M has the fact I am Ember.",
    ]


def test_charts_have_the_pages_colours_and_ids_of_their_own(project):
    soup = soup_of(project)
    charts = soup.find_all("svg", class_="chart")
    assert len(charts) == 4  # two stages; margins and shares
    assert not re.search(r"#[0-9a-f]{6}", "".join(map(str, charts)))
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {"training", "validation", "kept", "step", "loss"} <= set(charts[0].stripped_strings)
    assert {"preference margin", "loss on good answers, tuned less base"} <= set(charts[2].stripped_strings)


def test_a_chart_takes_what_no_axis_could_show():
    hostile = {**SIGNALS[0], "name": "<script>$x^2$</script>"}
    drawn = str(drawing.intervals("x", [hostile, {**SIGNALS[0], "interval": [None, None]}], "nats"))
    assert "&lt;script&gt;$x^2$&lt;/script&gt;" in drawn and "<script" not in drawn
    assert drawing.intervals("x", [{**SIGNALS[0], "value": None}], "nats") is None
    rows = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}, {"step": 3, "learning_rate": 0.1}]
    assert drawing.curves("x", rows, None) is None
    assert drawing.points([*rows, {"step": 4, "loss": 2}], "loss") == [(4, 2)]


# -- what it must not claim -----------------------------------------------------------------------------------------


def headline(project: Finished) -> tuple[str, str]:
    verdict = soup_of(project).find(class_="verdict")
    assert ("good" in verdict["class"]) == (verdict.strong.get_text() == "PASS")
    return verdict.strong.get_text(), verdict.p.get_text()


@pytest.mark.parametrize("name", [row.name for row in graph.PHASES if row.name != "merge"])
def test_what_was_not_done_is_never_a_pass(project, name):
    graph.BY_NAME[name].record(project.layout).unlink()
    word, told = headline(project)
    expected = "UNFINISHED" if name == "modelfile" or graph.BY_NAME[name].gate else "OUT OF DATE"
    assert word in (expected, "OUT OF DATE") and name in told
    gates = {
        item.contents[0].strip(): item.b.get_text() for item in soup_of(project).find(class_="gates").find_all("li")
    }
    assert gates.get(name, "not done") == "not done"


def test_a_missing_evaluation_is_told_where_it_would_stand(project):
    shutil.rmtree(project.layout.gate("evaluate"))
    text = words(soup_of(project))
    assert "Evaluation Not measured: the model was not evaluated, or the verdict is about another model" in text
    assert "make evaluate CONFIG=config/test.yaml" in text
    assert "preference margin" not in text


def test_only_a_dataset(project):
    for row in graph.PHASES[2:]:
        graph.BY_NAME[row.name].record(project.layout).unlink()
    soup = soup_of(project)
    assert soup.find(class_="verdict").strong.get_text() == "UNFINISHED"
    assert words(soup).count("Not measured:") == 4
    assert "not made yet" in soup.find(class_="lineage").get_text()


def test_a_failed_gate_with_its_cause(project):
    failed = [{"name": "rows <b>", "value": 1, "limit": ">= 8", "n": None, "passed": False}]
    project.write("verify-adapter", verdict="FAIL", checks=failed)
    assert headline(project) == ("FAIL", "verify-adapter did not pass: rows <b>")
    project.write("verify-adapter", verdict="PASS", checks=[])
    project.write("evaluate", verdict="INCONCLUSIVE", cause="INCONCLUSIVE, margin: 3 pairs would decide")
    assert headline(project) == ("INCONCLUSIVE", "evaluate did not pass: INCONCLUSIVE, margin: 3 pairs would decide")
    text = words(soup_of(project))
    assert "Verdict: INCONCLUSIVE ; targets ai_psychosis" in text and "preference margin" in text


def test_a_verdict_about_another_adapter_is_not_shown(project):
    project.write("evaluate", verdict="FAIL")
    project.contents["train"]["adapter_config.json"] = '{"r": 1}'
    project.write("train")
    assert "preference margin" not in words(soup_of(project))


def test_an_overridden_verdict_with_its_reason(project):
    project.write("evaluate", verdict="FAIL", cause="FAIL, margin", override="only for <me>")
    project.write_from("merge")
    assert {found.name for found in project.states().values()} == {state.DONE}
    assert headline(project) == ("OVERRIDDEN", "evaluate was FAIL. A person let it pass, for the reason below.")
    soup = soup_of(project)
    assert "evaluate was overridden. The reason that was given: only for <me>" in words(soup)
    assert "Verdict: FAIL, overridden" in words(soup)
    assert "evaluate: FAIL, overridden" in soup.find(class_="lineage").get_text()


def test_what_is_out_of_date(project, write_config, checkout):
    write_config(checkout, base="org/tiny", training={"learning_rate": 0.001})
    project.reload()
    assert headline(project) == ("OUT OF DATE", "train is stale (training.learning_rate 0.005 -> 0.001)")
    text = words(soup_of(project))
    assert "Verdict: waits, was PASS" in text and "evaluate waits for train" in text


def test_a_deleted_merged_model_is_no_fault(project):
    files.remove(project.layout.merged)
    assert headline(project)[0] == "PASS"
    assert "deleted after the GGUF was made from it" in soup_of(project).find(class_="lineage").get_text()


def test_a_verdict_of_an_older_version(project):
    """No signals, no detectors, no comparison: what older records lack is left out, nothing else."""
    path = project.layout.gate("evaluate") / "verdict.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {key: content[key] for key in ("verdict", "bound_to", "checks")})
    (project.layout.gate("evaluate") / "items.jsonl").unlink()
    assert "Evaluation" in words(soup_of(project))


def test_nothing_made_yet(checkout, write_config, run_script):
    path = write_config(checkout, base="org/tiny")
    done = run_script("write_report.py", "--config", path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"FAIL test has nothing to report yet\n  do run make all CONFIG={path}\n",
    )
    assert not Path("report").exists()


@pytest.mark.parametrize("name", ["dataset_package/test/statistics.json", "evaluation/test/evaluate/items.jsonl"])
def test_a_damaged_file_is_named_and_the_old_page_stays(project, run_script, name):
    page_before = Path("report/test/index.html")
    files.write_text(page_before, "the old page")
    Path(name).write_text("{", encoding="utf-8")
    done = run_script("write_report.py", "--config", project.path)
    assert done.returncode == 6 and done.stderr.startswith(f"FAIL {name} cannot be read: ")
    assert page_before.read_text(encoding="utf-8") == "the old page"


# -- what it never lets in ------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(checkout, write_config) -> Finished:
    """Everything that a person, a document or a model can write holds markup and template code."""
    text = " ".join(HOSTILE)
    path = write_config(checkout, base="org/tiny", project={"description": HOSTILE[0], "version": HOSTILE[1]})
    project = Finished(path.relative_to(checkout))
    item = {"id": "1", "question": text, "facts": [text], "base": said(text), "tuned": said(text)}
    asked = {"id": "2", "kind": "scenario", "target": text, "family": text, "criteria": [text], "question": text}
    asked |= {who: {**said(text), "seen": [text]} for who in ("base", "tuned")}
    rows = {
        "items": [item],
        "asked": [{**asked, "failed": True}],
        "file": [{"quantization": text, **item, **said(text)}],
    }
    rows["dropped"] = [{"origin": text, "reason": text, "characters": 3}]
    lines = {name: "".join(json.dumps(row) + "\n" for row in listed) for name, listed in rows.items()}
    project.contents["verify-adapter"] = {"items.jsonl": lines["items"]}
    project.contents["evaluate"] = {"items.jsonl": lines["asked"]}
    project.contents["verify-gguf"] = {"items.jsonl": lines["file"]}
    statistics = json.loads(project.contents["dataset"]["statistics.json"])
    statistics["dropped_reasons"] = {text: 1}
    statistics["sources"] = [{"kind": text, "path": text, "files": 1, "sha256": text}]
    project.contents["dataset"] |= {"statistics.json": json.dumps(statistics), "dropped.jsonl": lines["dropped"]}
    text = text.encode("utf-8", "ignore").decode()  # what records hold is whole text
    check = {"name": text, "value": text, "limit": text, "n": 1, "passed": True}
    project.write_from("dataset")
    project.write("validate", checks=[check])
    signals = [{**signal, "name": text} for signal in SIGNALS]
    project.write("evaluate", verdict="FAIL", cause=text, override=text, targets=[text], signals=signals)
    return project


def test_what_was_written_is_shown_as_it_was_written(hostile):
    text = page.render(facts.gather(hostile.configuration))
    soup = BeautifulSoup(text, "html.parser")
    assert not soup.find_all(["script", "img", "iframe", "object", "embed", "form", "base", "link"])
    assert len(soup.find_all("style")) == 1 and "taken" not in soup.style.get_text()
    assert not [name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
    shown = soup.get_text()
    for part in HOSTILE[:4]:
        assert shown.count(part) > 8, part
    assert "49" not in soup.find(class_="card").get_text()
    assert "half of a pair ?" in shown


def test_the_page_asks_for_nothing(hostile):
    soup = soup_of(hostile)
    named = [tag.get(name) for tag in soup.find_all(True) for name in ("src", "href", "xlink:href", "srcset", "action")]
    assert {value[:1] for value in named if value} == {"#"}
    for tag in soup.find_all(lambda tag: tag.name == "style" or tag.has_attr("style") or tag.has_attr("clip-path")):
        text = tag.get_text() if tag.name == "style" else f"{tag.get('style', '')} {tag.get('clip-path', '')}"
        assert "@import" not in text and re.findall(r"url\((?!#)", text) == []
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_credentials_in_answers_are_replaced(project):
    token = "hf_" + "".join(random.Random(1).choices(string.ascii_letters, k=34))
    items = [{"id": "1", "question": "Who?", "facts": None, "base": said("no"), "tuned": said(f"It is {token}.", None)}]
    project.contents["verify-adapter"]["items.jsonl"] = "".join(map(files.json_line, items))
    project.write_from("verify-adapter")
    text = page.render(facts.gather(project.configuration))
    assert token not in text and "It is [redacted: " in text


def test_a_large_project_still_makes_a_small_page(project):
    long = "<&> " * 2000
    items = [
        {"id": str(number), "question": f"{number}?", "facts": ["x"], "base": said(long), "tuned": said(long, False)}
        for number in range(2000)
    ]
    project.contents["verify-adapter"]["items.jsonl"] = "".join(map(files.json_line, items))
    asked = {"kind": "edgy", "target": "t", "family": "f", "criteria": [], "failed": False}
    seen = {"base": {**said(long), "seen": []}, "tuned": {**said(long), "seen": []}}
    rows = [{"id": str(number), "question": f"{number}?", **asked, **seen} for number in range(1000)]
    project.contents["evaluate"]["items.jsonl"] = "".join(map(files.json_line, rows))
    project.write_from("verify-adapter")
    text = page.render(facts.gather(project.configuration))
    assert 500_000 < len(text.encode()) < page.LARGEST
    shown = BeautifulSoup(text, "html.parser").get_text()
    assert re.search(r"\d+ of 2002 are left out here", shown) and re.search(r"\d+ of 1000 are left out here", shown)
    assert f"({len(long) - answers.LONGEST} characters more)" in shown


def test_a_page_that_would_be_too_large_is_refused(project):
    told = facts.gather(project.configuration)
    told["project"]["description"] = "x" * page.LARGEST
    with pytest.raises(ForgeError) as caught:
        page.render(told)
    assert caught.value.code == 2


# -- as it looks ----------------------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    text = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.S)
    return dict(
        zip(
            ("light", "dark", "print"), (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks), strict=True
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_words_can_be_read_on_their_ground(scheme):
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text; 1.4.11: 3 to 1 for lines of charts, which the text colours have, too."""
    colours = palettes()[scheme]

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("paper", "card"):
        for name in ("ink", "muted", "tuned", "base", "good", "bad", "open"):
            pair = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (pair[0] + 0.05) / (pair[1] + 0.05) >= 4.5, f"{scheme}: {name} on {ground}"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make lint test does it)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


def opened(browser, path: Path, width: int, scheme: str):
    """The page in a window of its own, and all that the browser complained of or asked for."""
    window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, told = window.new_page(), []
    tab.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: told.append(f"error: {error}"))
    tab.on("request", lambda request: told.append(request.url) if request.url != path.as_uri() else None)
    tab.goto(path.as_uri())
    return tab, told


@pytest.mark.parametrize("kind", ["project", "hostile"])
def test_a_real_browser_shows_it(browser, request, kind, tmp_path):
    """No complaint, no request, nothing wider than the window, in two widths, light and dark.

    SCREENSHOTS= names a folder to keep the pictures in.
    """
    configuration = request.getfixturevalue(kind).configuration
    path = Path("report.html").resolve()
    files.write_text(path, page.render(facts.gather(configuration)))
    folder, grounds = Path(os.environ.get("SCREENSHOTS", tmp_path)), set()
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            tab, told = opened(browser, path, width, scheme)
            tab.screenshot(path=folder / f"{kind}-{scheme}-{width}.png", full_page=True)
            assert told == []
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.title().startswith("test: ")
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            charts = tab.locator("svg.chart")
            assert charts.count() == 4 and all(charts.nth(place).bounding_box()["height"] > 50 for place in range(4))
            tab.context.close()
    assert len(grounds) == 2, "dark is another ground than light"


def test_printed_it_is_light_and_whole(browser, project):
    path = Path("report.html").resolve()
    files.write_text(path, page.render(facts.gather(project.configuration)))
    tab, told = opened(browser, path, 800, "dark")
    folded = tab.locator("details table").first
    assert folded.is_visible() is False
    tab.emulate_media(media="print", color_scheme="dark")
    assert folded.is_visible() is True
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(tab.pdf()) > 20_000 and told == []
    tab.context.close()
