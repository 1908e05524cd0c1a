"""Files quantized straight from base and adapter against the usual chain's, byte for byte, and the tensors' check.

The usual chain is peft's merge_and_unload, llama.cpp's converter and llama.cpp's quantizer: these tests catch any drift
of the three.
"""

import filecmp
import json
import math
import shutil
from pathlib import Path

import families
import numpy as np
import pytest
from forge import files, models
from forge.errors import BAD_INPUT, ENVIRONMENT, INTEGRITY, ForgeError
from forge.llamacpp import converter, llama
from forge.quantizing import checks, direct, ggml, process, tensors
from test_weights import new_adapter

WANTED = ("Q4_K_M", "Q5_0")


def weights_of(base: Path, adapter: Path | None = None) -> dict:
    return {"folder": str(base), "dtype": "bfloat16", "rounding": None} | ({"adapter": str(adapter)} if adapter else {})


def by_the_usual_chain(base: Path, adapter: Path, folder: Path, metadata: Path) -> Path:
    """The merged model's folder; beside it a file for each of WANTED, and the 16-bit one."""
    merged = folder / "merged"
    shutil.copytree(base, merged, ignore=shutil.ignore_patterns("*.safetensors"))
    model = models.with_adapter(models.causal_lm(base, "bfloat16", where="cpu"), adapter).merge_and_unload()
    model.save_pretrained(merged)
    shutil.copy(base / "config.json", merged / "config.json")
    converter.convert(merged, folder / "BF16.gguf", "bf16", "bees", metadata)
    for name in WANTED:
        llama.quantize(folder / "BF16.gguf", folder / f"{name}.gguf", name)
    return merged


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def made(request, tmp_path_factory, tiny_base) -> dict:
    """Both ways' files of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_base if request.param == "qwen2" else families.tiny_llama(folder / "base")
    adapter = new_adapter(base, folder / "adapter", r=4)
    metadata = folder / "metadata.json"
    files.write_json(metadata, {"general.name": "bees", "general.version": "1"})
    (folder / "usual").mkdir()
    (folder / "straight").mkdir()
    merged = by_the_usual_chain(base, adapter, folder / "usual", metadata)
    model = {"folder": merged, "name": "bees", "outtype": "bf16", "metadata": metadata}
    paths = {name: folder / f"straight/{name}.gguf" for name in WANTED}
    hashes = process.quantize(weights_of(base, adapter), model, paths)
    return {"folder": folder, "base": base, "adapter": adapter, "model": model, "paths": paths, "hashes": hashes}


@pytest.mark.slow
def test_straight_from_base_and_adapter_gives_the_usual_bytes(made):
    for name, path in made["paths"].items():
        assert filecmp.cmp(path, made["folder"] / f"usual/{name}.gguf", shallow=False), name
        assert made["hashes"][name] == files.sha256_file(path)
    assert sorted(path.name for path in (made["folder"] / "straight").iterdir()) == sorted(f"{n}.gguf" for n in WANTED)


@pytest.mark.slow
def test_from_the_merged_model_the_same_bytes(made, tmp_path):
    process.quantize(weights_of(made["model"]["folder"]), made["model"], {"Q4_K_M": tmp_path / "out.gguf"})
    assert filecmp.cmp(tmp_path / "out.gguf", made["paths"]["Q4_K_M"], shallow=False)


@pytest.mark.slow
def test_every_tensor_is_within_its_bound_and_holds_what_was_trained(made):
    base, model = made["base"], {key: made["model"][key] for key in ("folder", "name", "outtype")}
    sixteen = made["folder"] / "usual/BF16.gguf"
    without = made["folder"] / "without.gguf"  # a right file of the base: the adapter is not in it
    if not without.exists():
        process.quantize(weights_of(base), made["model"], {"Q8_0": without})
    paths = [*made["paths"].values(), sixteen, without]
    found = process.compare(weights_of(base, made["adapter"]), weights_of(base), model, paths)
    for path in paths:
        bound, trained = checks.checks(found[str(path)])
        assert trained["n"] == 14
        assert bound["n"] == len(found[str(path)]) > 20
        if path != without:
            assert bound["passed"] and trained["passed"], path
    assert {row["error"] for row in found[str(sixteen)]} == {0.0}
    assert checks.kept(found[str(sixteen)]) == 1
    _, trained = checks.checks(found[str(without)])
    assert not trained["passed"] and abs(trained["value"]) < 0.05


def test_rows_that_come_in_other_pieces_are_compared_with_their_own():
    rows = np.arange(70).reshape(35, 2)

    def cut(*places: int):
        return iter(np.split(rows, places))

    found = list(tensors.together(cut(4, 8, 12, 30), cut(17, 18)))
    assert all(np.array_equal(ours, theirs) for ours, theirs in found)
    assert np.array_equal(np.concatenate([ours for ours, _ in found]), rows)
    for left, right in ((cut(4), iter([rows[:-1]])), (iter([rows[:-1]]), cut(4))):
        with pytest.raises(ValueError, match="same number of rows"):
            list(tensors.together(left, right))


@pytest.mark.slow
def test_a_tensor_of_another_layer_is_beyond_its_bound(made, tmp_path):
    import gguf

    path = shutil.copy(made["paths"]["Q4_K_M"], tmp_path / "swapped.gguf")
    reader = gguf.GGUFReader(str(path), "r+")
    first, second = (item for item in reader.tensors if item.name.endswith("ffn_up.weight"))
    first.data[:] = second.data
    reader.data.flush()
    model = {key: made["model"][key] for key in ("folder", "name", "outtype")}
    found = process.compare(weights_of(made["base"], made["adapter"]), weights_of(made["base"]), model, [path])
    bound, _ = checks.checks(found[str(path)])
    assert not bound["passed"]
    assert bound["value"] == "1 (blk.0.ffn_up.weight)"


# -- ggml ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q4_K", "q5_K", "q6_K", "q3_K", "q2_K", "q8_0", "q4_0", "q5_1", "iq4_nl", "iq4_xs"])
def test_the_bounds_hold_for_hard_weights_and_catch_wrong_ones(kind):
    """Even ones, ones with a single large weight in each block, and ones far from zero."""
    import gguf

    number = int(next(item for item in gguf.GGMLQuantizationType if ggml.type_name(int(item)) == kind))
    noise = np.random.default_rng(2)
    even = noise.normal(size=(64, 512)).astype(np.float32)
    spiked = even.copy()
    spiked[:, ::32] = 50
    for rows in (even, spiked, even + 3):
        out = np.empty((64, ggml.row_bytes(number, 512)), np.uint8)
        ggml.quantize(number, rows, out)
        error = math.sqrt(np.square(ggml.to_float(number, out) - rows).sum() / np.square(rows).sum())
        assert 0 < error <= tensors.limit(kind)
    wrong = math.sqrt(np.square(ggml.to_float(number, out)[::-1] - even).sum() / np.square(even).sum())
    assert wrong > tensors.limit(kind)


def test_rows_that_are_not_finite_are_refused():
    out = np.empty((1, ggml.row_bytes(8, 256)), np.uint8)
    with pytest.raises(ForgeError, match="not finite") as caught:
        ggml.quantize(8, np.full((1, 256), np.inf, np.float32), out)
    assert caught.value.code == INTEGRITY


def test_pieces_made_ahead_come_in_order_and_errors_arrive():
    assert list(direct.ahead(range(100))) == list(range(100))

    def breaking():
        yield 1
        raise ForgeError("the disk went away", "bring it back")

    with pytest.raises(ForgeError, match="went away"):
        list(direct.ahead(breaking()))


# -- the worker's answers -----------------------------------------------------------------------------------------


def answering(monkeypatch, tmp_path, script: str) -> None:
    """A stand-in for the worker: what it prints and how it ends."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(stand_in))


def test_a_killed_worker_is_a_matter_of_resources(monkeypatch, tmp_path):
    answering(monkeypatch, tmp_path, "kill -9 $$")
    with pytest.raises(ForgeError, match="ended with -9") as caught:
        process.run({"do": "quantize"})
    assert caught.value.code == ENVIRONMENT


def test_the_workers_errors_and_refusals_are_handed_on(monkeypatch, tmp_path):
    answer = {"cause": "the disk is full", "remedy": "free some space", "code": ENVIRONMENT}
    answering(monkeypatch, tmp_path, f"echo '{json.dumps(answer)}'")
    with pytest.raises(ForgeError, match="the disk is full") as caught:
        process.run({})
    assert caught.value.code == ENVIRONMENT
    answering(monkeypatch, tmp_path, """echo '{"unsupported": "experts"}'""")
    with pytest.raises(process.Unsupported, match="experts"):
        process.run({})


def test_what_the_worker_counts_is_told(monkeypatch, tmp_path):
    lines = ['{"told": [3, 9]}', "words of a library", '{"told": [9, 9]}', '{"done": 5}']
    answering(monkeypatch, tmp_path, "\n".join(f"echo '{line}'" for line in lines))
    seen = []
    assert process.run({}, lambda done, of: seen.append((done, of))) == 5
    assert seen == [(3, 9), (9, 9)]


def test_without_a_merged_model_the_usual_way_is_refused():
    import convert_to_gguf

    class Run:
        def facts(self, phase):
            return {"kept": False}

    with pytest.raises(ForgeError, match="without the merged model") as caught:
        convert_to_gguf.usual_way(Run(), {}, {}, 0)
    assert (caught.value.code, caught.value.remedy) == (BAD_INPUT, "set merge.keep to true")
