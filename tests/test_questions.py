"""Judging answers by facts, and the table at the end of `make all`."""

import pytest
import summary
from forge import questions


@pytest.mark.parametrize(
    ("answer", "facts", "wanted"),
    [
        ("Type make status.", ["make status"], True),
        ("Type  MAKE\nStatus.", ["make status"], True),
        ("Type make all.", ["make status"], False),
        ("Both 3 and 5.", ["3", "5"], True),
        ("Only 3.", ["3", "5"], False),
        ("", ["3"], False),
        ("Anything.", [], None),
        ("Anything.", None, None),
    ],
)
def test_right(answer, facts, wanted):
    assert questions.right(answer, facts) is wanted


def test_score_counts_what_could_be_judged():
    items = [
        {"contains_facts": True, "stopped": True},
        {"contains_facts": False, "stopped": False},
        {"contains_facts": None, "stopped": True},
    ]
    assert questions.score(items) == {"right": 1, "asked": 2, "stopped": 2, "answers": 3}
    assert questions.score([]) == {"right": 0, "asked": 0, "stopped": 0, "answers": 0}


RESULTS = {
    "questions": {
        "base": {"right": 0, "asked": 4, "stopped": 1, "answers": 5},
        "tuned": {"right": 4, "asked": 4, "stopped": 5, "answers": 5},
        "Q4_K_M": {"right": 3, "asked": 4, "stopped": 5, "answers": 5},
    },
    "loss": {"rows": 6, "tokens": 120, "base": 4.0, "tuned": 1.25, "Q4_K_M": 1.5},
    "mean_kl": {"merged": 0.001, "Q4_K_M": 0.09},
}
COLUMNS = ["base", "tuned", "Q4_K_M"]


def test_table_sets_base_tuned_and_file_side_by_side(capsys):
    summary.table(["", *COLUMNS], summary.figures(RESULTS, COLUMNS))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:1]] == [COLUMNS]
    assert [line.split()[-9:] for line in lines[1:3]] == [
        ["0", "of", "4", "4", "of", "4", "3", "of", "4"],
        ["1", "of", "5", "5", "of", "5", "5", "of", "5"],
    ]
    assert lines[3].split()[-3:] == ["4.00", "1.25", "1.50"]
    assert "6 held-out rows (120 tokens)" in lines[3]
    assert lines[4].split()[-3:] == ["-", "-", "0.0900"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_table_leaves_out_what_was_not_asked():
    silent = {name: {"right": 0, "asked": 0, "stopped": 0, "answers": 0} for name in COLUMNS}
    assert [line[0].split()[0] for line in summary.figures({**RESULTS, "questions": silent}, COLUMNS)] == ["loss", "KL"]
