"""What documents came to, kept from run to run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forge.data import cache, parallel
from forge.data.package import META

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def part(text: str) -> dict:
    meta = np.zeros(1, META)
    meta["size"] = len(text)
    return {
        "meta": meta.tobytes(),
        "signatures": np.arange(128, dtype=np.uint32).tobytes(),
        "lines": text.encode(),
        "told": {"dropped": [{"text": "\ud800 ü"}], "bad": [], "refused": [], "counts": {"files": 1}},
    }


def test_what_is_put_is_got(tmp_path):
    kept = cache.Cache(tmp_path / "a/cache", "base")
    kept.begin()
    key = kept.key("page.md", "digest")
    assert kept.get(key) is None
    kept.put(key, part("row"))
    kept.finish()
    assert cache.Cache(tmp_path / "a/cache", "base").get(key) == part("row")


def test_keys_depend_on_name_content_and_everything_else(tmp_path):
    one, other = cache.Cache(tmp_path / "c", "base"), cache.Cache(tmp_path / "c", "other")
    keys = {one.key("a", "1"), one.key("b", "1"), one.key("a", "2"), other.key("a", "1")}
    assert len(keys) == 4


def test_what_a_run_does_not_use_is_removed(tmp_path):
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    for name in "abc":
        kept.put(name, part(name))
    kept.finish()
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    kept.put("b", None)
    kept.finish()
    assert [name for name in "abc" if kept.get(name)] == ["b"]


def test_a_damaged_file_is_made_anew(tmp_path):
    (tmp_path / "cache").write_bytes(b"no database" * 1000)
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    kept.put("key", part("row"))
    kept.finish()
    assert kept.get("key") == part("row")


def test_the_code_counts():
    assert len(cache.code_digest()) == 64


def test_a_worker_has_a_connection_of_its_own(tmp_path):
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    kept.put("key", part("row"))
    kept.database.commit()

    def look(_: int) -> tuple[bool, bool]:
        return kept.get("key") == part("row"), kept.database is not kept.kept

    assert list(parallel.ordered(look, range(4), 2)) == [(True, True)] * 4
    kept.put("other", part("more"))
    kept.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}  # no log is left


@pytest.mark.parametrize("place", [0, 5000])
def test_damage_anywhere_costs_time_and_nothing_else(tmp_path, place):
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    for number in range(50):
        kept.put(str(number), part("x" * 1000 + str(number)))
    kept.finish()
    raw = bytearray((tmp_path / "cache").read_bytes())
    raw[place : place + 3000] = b"\xff" * 3000
    (tmp_path / "cache").write_bytes(raw)
    again = cache.Cache(tmp_path / "cache", "base")
    again.begin()
    for number in range(50):
        found = again.get(str(number))
        assert found in (None, part("x" * 1000 + str(number)))
        again.put(str(number), None if found else part("x" * 1000 + str(number)))
    again.finish()


def test_what_is_stopped_is_kept_so_far(tmp_path):
    kept = cache.Cache(tmp_path / "cache", "base")
    kept.begin()
    kept.put("key", part("row"))
    kept.close()
    assert cache.Cache(tmp_path / "cache", "base").get("key") == part("row")


def test_the_digest_covers_every_room_whose_code_makes_rows():
    """Else rows of older code would be taken from the cache. llamacpp: questions asks a GGUF with it."""
    imports = "from forge.data import package, rows; from forge.reading import document_files"
    code = f"import sys; {imports}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPTS)
    rooms = {name.split(".")[1] for name in done.stdout.split() if name.startswith("forge.") and name.count(".") == 2}
    assert rooms - {"llamacpp"} == set(cache.ROOMS)
