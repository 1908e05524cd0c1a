"""The importance matrix: llama.cpp's own tool, compiled here, on training rows; and what the quantizer makes of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from forge import files, schema
from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError
from forge.llamacpp import converter, importance, llama

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
QUANTIZED = [name for name in schema.QUANTIZATIONS if name not in converter.WHOLE]


@pytest.fixture(scope="module")
def full(tiny_base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("full") / "full.gguf"
    converter.convert(tiny_base, out, "bf16", "tiny")
    return out


def write_rows(folder: Path, count: int) -> Path:
    turns = [
        {"role": "user", "content": "What is honey?"},
        {"role": "assistant", "content": "Dried nectar of flowers."},
    ]
    rows = [
        {"id": str(number), "messages": [*turns, {"role": "user", "content": str(number)}]} for number in range(count)
    ]
    folder.mkdir(exist_ok=True)
    files.write_jsonl(folder / "train.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def matrix(full, tiny_tokenizer, tmp_path_factory) -> tuple[dict, dict]:
    """What the record says, and the entries."""
    folder = tmp_path_factory.mktemp("matrix")
    facts = importance.measure(full, write_rows(folder / "rows", 40), tiny_tokenizer, folder, print)
    return facts, importance.entries(folder / importance.MATRIX)


# -- what is measured ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_matrix_has_a_number_for_each_column_of_each_matrix(matrix, full):
    facts, found = matrix
    assert facts["rows"] == 40 and facts["tokens"] >= 1024
    assert len(facts["sha256"]) == 64
    places = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"]
    assert sorted(found) == [f"blk.{layer}.{place}.weight" for layer in (0, 1) for place in places]
    for name, values in found.items():
        assert values.shape == (512 if "ffn_down" in name else 256,)
        assert values.dtype == np.float32 and np.isfinite(values).all() and (values >= 0).all() and values.max() > 0


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Weights of a Llama of 2 layers, 256 wide, with a vocabulary of 64: all that the quantizer looks at."""
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    chance = np.random.default_rng(0)
    for name, shape in {"token_embd": (64, 256), **WEIGHTS}.items():
        writer.add_tensor(f"{name}.weight", chance.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SHAPES = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256)}
SHAPES |= {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}
WEIGHTS = {f"blk.{layer}.{name}": shape for layer in (0, 1) for name, shape in SHAPES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_what_llama_cpp_refuses_without_a_matrix_and_makes_with_one(small, tmp_path, quantization):
    without, with_one = tmp_path / "without.gguf", tmp_path / "with.gguf"
    if quantization in schema.NEEDS_IMPORTANCE_MATRIX:
        with pytest.raises(ForgeError, match="could not quantize"):
            llama.quantize(small, without, quantization)
    else:
        llama.quantize(small, without, quantization)
        assert "quantize.imatrix.entries_count" not in llama.header(without)
    even = {f"{name}.weight": np.ones(shape[1], dtype=np.float32) for name, shape in WEIGHTS.items()}
    llama.quantize(small, with_one, quantization, even)
    told = {key: value for key, value in llama.header(with_one).items() if key.startswith("quantize.")}
    assert told == {"quantize.imatrix.dataset": "training rows", "quantize.imatrix.entries_count": 14}


def test_weights_that_matter_are_kept_more_exactly(small, tmp_path):
    """Every eighth column counts a hundredfold: its error falls, that of the others may rise."""
    uneven = np.where(np.arange(512) % 8 == 0, 100, 1).astype(np.float32)
    matrix = {f"{name}.weight": uneven[: shape[1]].copy() for name, shape in WEIGHTS.items()}
    errors = []
    for name, given in (("without", None), ("with", matrix)):
        llama.quantize(small, tmp_path / name, "Q4_K_S", given)
        was, now = weight(small), weight(tmp_path / name)
        errors.append(np.square(was - now)[:, ::8].mean())
    assert errors[1] < 0.9 * errors[0]


def weight(path: Path) -> np.ndarray:
    [found] = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.1.attn_q.weight"]
    return gguf.quants.dequantize(found.data, found.tensor_type)


def test_nothing_but_training_rows_is_read(tiny_tokenizer, tmp_path):
    folder = write_rows(tmp_path / "rows", 3)
    for name in ("validation", "questions", "evaluation"):
        (folder / f"{name}.jsonl").write_text("not even JSON", encoding="utf-8")
    text, rows, tokens = importance.calibration(folder / "train.jsonl", tiny_tokenizer)
    assert rows == 3 and tokens == len(tiny_tokenizer(text)["input_ids"])
    assert text.count("<|im_start|>assistant\nDried nectar of flowers.<|im_end|>") == 3


def test_a_fixed_choice_of_many_rows(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "ROWS", 50)
    path = write_rows(tmp_path / "rows", 200) / "train.jsonl"
    chosen = [row["id"] for row in importance.sample(path)]
    assert chosen == [row["id"] for row in importance.sample(path)]
    assert len(set(chosen)) == 50 and max(map(int, chosen)) > 150
    monkeypatch.setattr(importance, "TOKENS", 100)
    text, rows, tokens = importance.calibration(path, tiny_tokenizer)
    assert 100 <= tokens < 140 and rows < 6


# -- the tool -----------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A source of llama.cpp without a tool: links to the real one's."""
    real, made = llama.source().resolve(), tmp_path / "a llama.cpp"
    made.mkdir()
    for path in real.iterdir():
        if path.name != "build-model-forge":
            (made / path.name).symlink_to(path)
    monkeypatch.setenv("LLAMA_CPP", str(made))
    return made


def test_no_compiler(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ForgeError, match="needs a C\\+\\+ compiler") as error:
        importance.tool(print)
    assert error.value.code == ENVIRONMENT
    assert error.value.remedy == "sudo apt install build-essential, then run the same command again"


def test_a_compiler_that_fails(source, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: all is lost' >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ForgeError, match="could not be compiled: x.cpp:1: fatal error: all is lost"):
        importance.tool(print)
    assert [path.name for path in (source / "build-model-forge").iterdir()] == ["lock"]


def test_a_source_that_the_library_is_not_of(source):
    (source / "include").unlink()
    shutil.copytree(llama.library().__file__.rpartition("/llama_cpp/")[0] + "/include", source / "include")
    with (source / "include/llama.h").open("a", encoding="utf-8") as header:
        header.write("// another version\n")
    with pytest.raises(ForgeError, match="was not built from the llama.cpp in") as error:
        importance.tool(print)
    assert error.value.code == ENVIRONMENT


@pytest.mark.slow
def test_two_runs_compile_once_and_a_killed_one_leaves_nothing_half(source, tmp_path):
    code = "from forge.llamacpp import importance; print(importance.tool(print))"

    def start() -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
        command = [sys.executable, "-c", code]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
        )

    first = start()
    assert "compiling" in first.stdout.readline()
    time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not list((source / "build-model-forge").glob("llama-imatrix-*[0-9]"))
    said = [process.communicate(timeout=300)[0] for process in (start(), start())]
    assert sorted(text.count("compiling") for text in said) == [0, 1]
    [made] = (source / "build-model-forge").glob("llama-imatrix-*")
    assert all(text.splitlines()[-1] == str(made) for text in said)


@pytest.mark.slow
def test_a_tool_that_fails_says_why(tmp_path):
    built = importance.tool(print)
    (tmp_path / "text").write_text("Too short.", encoding="utf-8")
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ForgeError, match="llama-imatrix failed: ") as error:
        importance.run([str(built), "-m", "no.gguf", "-f", "text", "-o", importance.MATRIX], tmp_path, print)
    assert error.value.code == INTEGRITY
