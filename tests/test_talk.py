"""make chat: the real script on a tiny model, through a pipe and in a terminal; what is remembered and forgotten."""

import io
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import chat_model
import pytest
import sync_config
from forge import graph
from forge.errors import BAD_INPUT
from forge.serving import talk
from shipping import SYSTEM, finish


@pytest.fixture
def ready(checkout, tiny_gguf, write_config):
    write_config(checkout, base="org/tiny")
    finish(checkout, tiny_gguf)
    return ["--config", "config/test.yaml"]


# -- the loop, with answers made up ------------------------------------------------------------------------------


def test_what_was_said_is_remembered():
    seen = []

    def answer(turns, write):
        seen.append([dict(turn) for turn in turns])
        write("Yes.")
        return "Yes."

    turns = [{"role": "system", "content": SYSTEM}]
    for question in ("One?", "Two?"):
        chat_model.reply(answer, turns, question)
    assert [[turn["content"] for turn in asked] for asked in seen] == [
        [SYSTEM, "One?"],
        [SYSTEM, "One?", "Yes.", "Two?"],
    ]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]


def test_the_oldest_question_is_forgotten_when_the_context_is_full(capsys):
    def answer(turns, write):
        if len(turns) > 4:
            raise talk.TooLong
        write("Yes.")
        return "Yes."

    turns = [{"role": "system", "content": SYSTEM}]
    for question in ("One?", "Two?", "Three?"):
        chat_model.reply(answer, turns, question)
    assert [turn["content"] for turn in turns] == [SYSTEM, "Two?", "Yes.", "Three?", "Yes."]
    assert capsys.readouterr().err == "(the context was full: the oldest question is forgotten)\n"


def test_a_question_that_never_fits_is_told(capsys):
    def answer(turns, write):
        raise talk.TooLong

    before = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    turns = list(before)
    chat_model.reply(answer, turns, "One?")
    assert turns == before
    assert capsys.readouterr().out == "(this question is longer than the model's context)\n"


def test_a_stopped_answer_is_not_remembered(capsys):
    def answer(turns, write):
        write("Yes, b")
        raise KeyboardInterrupt

    turns = []
    chat_model.reply(answer, turns, "One?")
    assert turns == []
    assert capsys.readouterr().out == "Yes, b (stopped)\n"


# -- the script -------------------------------------------------------------------------------------------------


def test_through_a_pipe(ready):
    """One answer a question, each under the system prompt, and nothing else: no prompt, no escape code."""
    done = subprocess.run(
        [sys.executable, "scripts/chat_model.py", *ready, "--max-tokens", "8"],
        input="Who are you?\n\n  \n" + "too long " * 600 + "\nWho are you?",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "> " not in done.stdout
    assert "(this question is longer than the model's context)\n" in done.stdout
    assert done.stdout.endswith("\n") and done.stdout.split("\n", 1)[0]
    assert done.stderr == "test-BF16.gguf: Ctrl-C stops an answer, Ctrl-D ends the talk\n"


@pytest.mark.parametrize("ending", [b"\x04", b"\x03"])
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends_the_talk(ready, ending):
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background ignore it
        os.execv(sys.executable, [sys.executable, "scripts/chat_model.py", *ready, "--max-tokens", "400"])
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 200
        while text not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    seen += os.read(terminal, 4096)
                except OSError:  # the script ended
                    break
        assert text in seen, seen
        seen = seen.partition(text)[2]

    until(b"> ")
    os.write(terminal, b"Who are you?\n")
    until(b"Who are you?\r\n")
    while not seen.strip():  # some of the answer
        seen += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    until(b" (stopped)\r\n")
    until(b"> ")
    # Python's input() misses a Ctrl-C that comes after it printed the prompt and before it waits for a key, so that a
    # person would press it again; not sooner than a busy machine takes to end, for that would interrupt the ending.
    ended, status, deadline = 0, None, time.monotonic() + 180
    pressed = -math.inf
    while not ended and time.monotonic() < deadline:
        if time.monotonic() - pressed > 60:
            os.write(terminal, ending)
            pressed = time.monotonic()
        time.sleep(0.1)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("the talk does not end")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_sigterm_ends_it_kindly(ready):
    process = subprocess.Popen(
        [sys.executable, "scripts/chat_model.py", *ready],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline().startswith("test-BF16.gguf: ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_no_model_yet(checkout, write_config, run_script):
    write_config(checkout, base="org/tiny")
    done = run_script("chat_model.py", "--config", "config/test.yaml")
    assert done.returncode == BAD_INPUT
    assert done.stderr == "FAIL there is no GGUF yet\n  do run make all CONFIG=config/test.yaml\n"


def test_make_says_what_it_must_do_before_the_talk(capsys):
    sync_config.announce("chat", {"gguf": "changed: merge"}, graph.Layout("none", Path("models/base/x")))
    assert capsys.readouterr().err == (
        "chat needs first: gguf (changed: merge); verify-gguf (after gguf); modelfile (after gguf)\n"
    )


# -- the base beside it -----------------------------------------------------------------------------------------


def test_the_base_answers_beside_the_tuned_model(checkout, tiny_base, tiny_gguf, write_config, capsys, monkeypatch):
    from forge import config

    loaded = config.load(write_config(checkout))
    layout = loaded.layout
    finish(checkout, tiny_gguf)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))
    arguments = chat_model.argparse.Namespace(config="config/test.yaml", base=True, max_tokens=6)
    with pytest.raises(Exception, match="so the base cannot answer"):
        chat_model.chat(arguments)
    layout.base.parent.mkdir(parents=True)
    layout.base.symlink_to(tiny_base)
    chat_model.chat(arguments)
    said = capsys.readouterr().out
    assert said.startswith("tuned: ") and "\nbase: " in said
    tuned, base = said.removeprefix("tuned: ").rstrip("\n").split("\nbase: ")
    assert tuned.strip()[:3] == base.strip()[:3]  # the same weights in 16 bits, greedy
