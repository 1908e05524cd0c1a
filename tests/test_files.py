"""Files: whatever instant a kill chooses, the next run finds the old state or the new one, and no litter."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from forge import files
from forge.errors import ForgeError

RECORD = "manifest.json"


class Killed(BaseException):
    """Stands for the kill: raised where the process would have ended."""


def tree(root: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones included, and every empty folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
        elif not any(path.iterdir()):
            found[path.relative_to(root).as_posix() + "/"] = ""
    return found


def folder(path: Path, name: str, record: bool = True) -> None:
    path.mkdir(parents=True)
    (path / "a.txt").write_text(f"{name} a", encoding="utf-8")
    (path / "deep").mkdir()
    (path / "deep/b.txt").write_text(f"{name} b", encoding="utf-8")
    if record:
        (path / RECORD).write_text(name, encoding="utf-8")


def contents(prefix: str, name: str) -> dict[str, str]:
    found = {"a.txt": f"{name} a", "deep/b.txt": f"{name} b", RECORD: name}
    return {f"{prefix}/{file}" if prefix else file: text for file, text in found.items()}


def kill_at(monkeypatch, step: int) -> None:
    """End the process before the step-th change of the disk: every rename, removal and new folder is one."""
    count = 0

    def counted(real):
        def change(*arguments, **named):
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            return real(*arguments, **named)

        return change

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def survive(monkeypatch, step: int, work) -> bool:
    """Run the work with a kill at a step; True when it ended before that step came."""
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        try:
            work()
        except Killed:
            return False
    return True


def test_what_a_killed_writer_left_is_swept(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = [f".a.json.{os.getpid()}.partial", ".b.partial", "c.json"]
    for name in [f".a.json.{gone.pid}.partial", *kept]:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{gone.pid}.partial").mkdir()
    files.sweep(tmp_path)
    files.sweep(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, f".folder.{gone.pid}.partial"])


# -- one folder, swapped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["an old folder", "nothing", "an old folder and a retired one"])
def test_swap_killed_at_every_step(tmp_path, monkeypatch, before):
    states = []
    for step in range(1, 100):
        root = tmp_path / str(step)
        target = root / "model"
        if before != "nothing":
            folder(target, "old")
        if "retired" in before:
            folder(files.retired_path(target), "older")
        folder(files.staging_path(target), "new")
        ended = survive(monkeypatch, step, lambda target=target: files.swap_folder(target))
        assert tree(target) in ({}, contents("", "old"), contents("", "new"))  # what a reader finds in between
        files.mend_folder(target, RECORD)
        assert tree(root) == contents("model", "new"), f"killed at step {step}"
        states.append(ended)
        if ended:
            break
    assert len(states) > (1 if before == "nothing" else 4)  # the kill did strike


@pytest.mark.parametrize("old", [True, False])
def test_a_half_built_folder_is_dropped(tmp_path, old):
    target = tmp_path / "model"
    if old:
        folder(target, "old")
    folder(files.staging_path(target), "new", record=False)
    files.mend_folder(target, RECORD)
    assert tree(tmp_path) == (contents("model", "old") if old else {})


def test_a_retired_folder_comes_back_when_there_is_nothing_newer(tmp_path):
    target = tmp_path / "model"
    folder(files.retired_path(target), "old")
    folder(files.staging_path(target), "new", record=False)
    files.mend_folder(target, RECORD)
    assert tree(tmp_path) == contents("model", "old")


def test_mending_killed_at_every_step_is_mended_by_the_next(tmp_path, monkeypatch):
    for step in range(1, 100):
        root = tmp_path / str(step)
        target = root / "model"
        folder(files.retired_path(target), "old")  # killed between the two renames
        folder(files.staging_path(target), "new")
        ended = survive(monkeypatch, step, lambda target=target: files.mend_folder(target, RECORD))
        files.mend_folder(target, RECORD)
        assert tree(root) == contents("model", "new"), f"killed at step {step}"
        if ended:
            return


def test_mending_what_is_whole_changes_nothing(tmp_path):
    target = tmp_path / "model"
    files.mend_folder(target, RECORD)
    assert tree(tmp_path) == {}
    folder(target, "old")
    files.mend_folder(target, RECORD)
    assert tree(tmp_path) == contents("model", "old")


def test_an_archived_folder_is_kept_at_every_step(tmp_path, monkeypatch):
    for step in range(1, 100):
        root = tmp_path / str(step)
        target = root / "model"

        def place(old: Path, root: Path = root) -> Path | None:
            record = old / RECORD
            return root / "archive" / record.read_text(encoding="utf-8") if record.is_file() else None

        folder(target, "old")
        folder(files.staging_path(target), "new")
        ended = survive(monkeypatch, step, lambda target=target, place=place: files.swap_folder(target, place))
        files.mend_folder(target, RECORD, place)
        assert tree(root) == contents("model", "new") | contents("archive/old", "old"), f"killed at step {step}"
        if ended:
            return


def test_what_is_in_the_archive_already_is_not_kept_twice(tmp_path):
    target = tmp_path / "model"
    folder(tmp_path / "archive", "first")
    folder(target, "old")
    folder(files.staging_path(target), "new")
    files.swap_folder(target, lambda old: tmp_path / "archive")
    assert tree(tmp_path) == contents("model", "new") | contents("archive", "first")


# -- files moved into a folder of many ----------------------------------------------------------------------


@pytest.mark.parametrize("names", [["a.gguf", "b.gguf"], ["a.gguf"], []])
def test_move_in_killed_at_every_step(tmp_path, monkeypatch, names):
    for step in range(1, 100):
        shared, staging = tmp_path / str(step) / "gguf", tmp_path / str(step) / "gguf/.x.partial"
        staging.mkdir(parents=True)
        (shared / "other.gguf").write_text("other", encoding="utf-8")
        for name in (*names, RECORD):
            (shared / name).write_text("old", encoding="utf-8")
            (staging / name).write_text("new", encoding="utf-8")
        ended = survive(
            monkeypatch, step, lambda staging=staging, shared=shared: files.move_in(staging, shared, RECORD)
        )
        if not ended and (shared / RECORD).is_file():
            # a reader in between: with a record there, the files are the record's
            record = (shared / RECORD).read_text(encoding="utf-8")
            assert {(shared / name).read_text(encoding="utf-8") for name in names} <= {record}
        files.move_in(staging, shared, RECORD)
        files.remove(staging)
        assert tree(shared) == {"other.gguf": "other"} | dict.fromkeys([*names, RECORD], "new")
        if ended:
            assert step > len(names) + 1
            return


def test_move_in_leaves_a_half_built_folder_alone(tmp_path):
    staging = tmp_path / ".x.partial"
    staging.mkdir()
    (staging / "a.gguf").write_text("new", encoding="utf-8")
    (tmp_path / "a.gguf").write_text("old", encoding="utf-8")
    files.move_in(staging, tmp_path, RECORD)
    assert tree(tmp_path) == {".x.partial/a.gguf": "new", "a.gguf": "old"}


# -- single files --------------------------------------------------------------------------------------------


def test_a_write_that_is_killed_leaves_the_old_text_or_the_new(tmp_path, monkeypatch):
    found = []
    for step in range(1, 5):  # its folder, its rename, its tidying up
        path = tmp_path / str(step) / "a.json"
        path.parent.mkdir()
        path.write_text("old", encoding="utf-8")
        survive(monkeypatch, step, lambda path=path: files.write_text(path, "new"))
        found.append(path.read_text(encoding="utf-8"))
    assert found == ["old", "old", "new", "new"]


def test_a_write_that_fails_leaves_the_old_text_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert tree(tmp_path) == {"a.json": "old"}


def test_text_is_written_as_it_is(tmp_path):
    files.write_text(tmp_path / "deep/a.txt", "gr\u00fc\u00df\n\r\n")
    assert (tmp_path / "deep/a.txt").read_bytes() == "gr\u00fc\u00df\n\r\n".encode()


def test_write_if_changed_keeps_the_time_of_what_is_the_same(tmp_path):
    path = tmp_path / "a.json"
    assert files.write_if_changed(path, "one\n") is True
    os.utime(path, (1000, 1000))
    assert files.write_if_changed(path, "one\n") is False
    assert path.stat().st_mtime == 1000
    assert files.write_if_changed(path, "two\n") is True
    assert path.stat().st_mtime > 1000
    assert path.read_text(encoding="utf-8") == "two\n"


def test_write_if_changed_replaces_what_is_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe torn")
    assert files.write_if_changed(path, "one\n") is True
    assert path.read_text(encoding="utf-8") == "one\n"


def test_jsonl_keeps_every_character(tmp_path):
    rows = [{"text": "a\u2028b\u0085c\nd\re\tf \U0001f41d"}, {"text": ""}]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    assert files.read_jsonl(tmp_path / "a.jsonl") == rows
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


def test_remove(tmp_path):
    outside = tmp_path / "outside"
    folder(outside, "kept")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    shutil.copytree(outside, tmp_path / "copy")
    for name in ("link", "dangling", "copy", "nothing"):
        files.remove(tmp_path / name)
    assert tree(tmp_path) == contents("outside", "kept")


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * files.BLOCK)
    assert files.sha256_file(path) == files.sha256_file(shutil.copy(path, tmp_path / "b"))
    (tmp_path / "c").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "c") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_json({"b": 1, "a": "\u00e9"}) == files.sha256_json({"a": "\u00e9", "b": 1})


# -- space ----------------------------------------------------------------------------------------------------


def test_too_little_disk_is_refused_before_the_work(tmp_path):
    target = tmp_path / "not/there/yet"
    files.require_free_space(target, 1000, "a small thing")
    with pytest.raises(ForgeError) as caught:
        files.require_free_space(target, 10**18, "the merged model")
    assert caught.value.code == 7
    assert caught.value.cause.startswith(f"the merged model needs 1020000000.0 GB of disk in {target}, ")
    assert caught.value.cause.endswith(" GB are free")
    assert caught.value.remedy.startswith("free some space")
    assert not target.exists()


def test_the_space_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.require_free_space(Path("models/base/x"), 1, "it")
