"""Merging weight by weight against peft's merge_and_unload, and running a model whose weights come from the disk."""

import errno
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from forge import compare, models
from forge.errors import BAD_INPUT, INTEGRITY, ForgeError
from forge.weights import merging, sharding, streaming
from forge.weights.checkpoint import Checkpoint

LAYERS = 3
KINDS = {
    "lora": {"r": 8},
    "rank 256": {"r": 256},
    "rslora": {"r": 8, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "some modules": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
}


def new_adapter(base: Path, folder: Path, **settings) -> Path:
    """A LoRA with random numbers in all of its matrices."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    wanted = {"lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(models.causal_lm(base, "bfloat16", where="cpu"), LoraConfig(**wanted))
    for name, weight in model.named_parameters():
        if weight.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path, dtype: str) -> dict:
    merged = models.with_adapter(models.causal_lm(base, dtype, where="cpu"), adapter).merge_and_unload()
    return merged.state_dict()


def differing(checkpoint: Checkpoint, wanted: dict) -> list[str]:
    import torch

    return [name for name in checkpoint.entries if not torch.equal(checkpoint.tensor(name), wanted[name])]


def random_model(folder: Path, tied: bool, most: str = "1GB") -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    settings = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    Qwen2ForCausalLM(settings).to(torch.bfloat16).save_pretrained(folder, max_shard_size=most)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return random_model(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    """With an output layer of its own, in more than 20 shards."""
    folder = random_model(tmp_path_factory.mktemp("untied"), tied=False, most="130KB")
    assert len(list(folder.glob("*.safetensors"))) >= 20
    return folder


@pytest.mark.parametrize("at_once", [merging.AT_ONCE, 1 << 14], ids=["whole weights", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_weight_by_weight_is_pefts_own_to_the_last_bit(kind, at_once, base, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(merging, "AT_ONCE", at_once)
    adapter = new_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merged = merging.Merged(base, adapter, "bfloat16")
    (tmp_path / "out").mkdir()
    hashes = sharding.write(merged, tmp_path / "out", "1GB")
    assert list(hashes) == ["model.safetensors"]
    assert hashes["model.safetensors"] == hashlib.sha256((tmp_path / "out/model.safetensors").read_bytes()).hexdigest()
    written = Checkpoint(tmp_path / "out")
    assert written.entries.keys() == Checkpoint(base).entries.keys()
    assert differing(written, by_peft(base, adapter, "bfloat16")) == []
    assert all(torch.equal(written.tensor(name), merged.tensor(name)) for name in merged.layers)
    parts = len(list(merged.rows(next(iter(merged.layers)))))
    assert (parts > 1) == (at_once == 1 << 14 and kind != "dora")
    changed = differing(written, models.causal_lm(base, "bfloat16", where="cpu").state_dict())
    assert len(changed) == len(merged.layers) == LAYERS * (2 if kind == "some modules" else 7)


def test_many_shards_and_no_tied_weights(untied, tmp_path):
    adapter = new_adapter(untied, tmp_path / "adapter", r=8)
    (tmp_path / "out").mkdir()
    hashes = sharding.write(merging.Merged(untied, adapter, "bfloat16"), tmp_path / "out", "1MB")
    assert len(hashes) > 1
    assert differing(Checkpoint(tmp_path / "out"), by_peft(untied, adapter, "bfloat16")) == []
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == set(hashes)
    shutil.copy(untied / "config.json", tmp_path / "out/config.json")
    loaded = models.causal_lm(tmp_path / "out", "bfloat16", where="cpu").state_dict()  # transformers reads it, too
    assert differing(Checkpoint(tmp_path / "out"), loaded) == []


def test_a_base_stored_in_32_bits_is_merged_in_16(base, tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(base, wide)
    models.causal_lm(base, "float32", where="cpu").save_pretrained(wide)
    adapter = new_adapter(wide, tmp_path / "adapter", r=8)
    (tmp_path / "out").mkdir()
    sharding.write(merging.Merged(wide, adapter, "bfloat16"), tmp_path / "out", "1GB")
    written = Checkpoint(tmp_path / "out")
    assert {entry.dtype for entry in written.entries.values()} == {"BF16"}
    assert differing(written, by_peft(wide, adapter, "bfloat16")) == []


def test_the_dequantized_base_is_what_4_bit_training_saw(base):
    import torch
    from forge.training import base as training_base
    from forge.training.choices import Choices

    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    choices = Choices("cpu", "bfloat16", True, True, None, "adamw_torch", False, False)
    trained = training_base.load(base, settings, choices).state_dict()
    weights = merging.Weights(base, "bfloat16", settings)
    assert len(weights.packed) == LAYERS * 7
    assert [name for name in weights.checkpoint.entries if not torch.equal(weights.tensor(name), trained[name])] == []
    plain = merging.Weights(base, "bfloat16")
    assert not torch.equal(plain.tensor(sorted(weights.packed)[0]), weights.tensor(sorted(weights.packed)[0]))


# -- what cannot be merged so, and what is damaged ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, "replaces lm_head"),
        ({"bias": "all"}, r"replaces .*bias"),
        ({"lora_bias": True}, "biases of its own"),
        ({"trainable_token_indices": [1, 2]}, "replaces .*token"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
)
def test_what_peft_alone_can_merge_is_said(settings, reason, base, tmp_path):
    adapter = new_adapter(base, tmp_path / "adapter", r=4, **settings)
    with pytest.raises(merging.Unmergeable, match=reason):
        merging.Merged(base, adapter, "bfloat16")


def test_an_adapter_of_another_shape_is_refused(base, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(base, other)
    settings = AutoConfig.from_pretrained(base, intermediate_size=256)
    AutoModelForCausalLM.from_config(settings).save_pretrained(other)
    adapter = new_adapter(other, tmp_path / "adapter", r=4)
    with pytest.raises(ForgeError, match="does not fit this base") as caught:
        merging.Merged(base, adapter, "bfloat16")
    assert caught.value.code == INTEGRITY


def test_an_infinite_weight_stops_the_merge(base, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter = new_adapter(base, tmp_path / "adapter", r=4)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = float("inf")
    save_file(weights, adapter / "adapter_model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ForgeError, match="is not finite after the merge"):
        sharding.write(merging.Merged(base, adapter, "bfloat16"), tmp_path / "out", "1GB")


def drop_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[3].unlink()


def cut_a_shard(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[3]
    path.write_bytes(path.read_bytes()[:-10])


def empty_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[3].write_bytes(b"")


def lie_in_the_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, file in index["weight_map"].items() if file == first)
    index["weight_map"][name] = second
    path.write_text(json.dumps(index), encoding="utf-8")


def name_a_shard_outside(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"model-0000', '"../model-0000'), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (drop_a_shard, "a shard of the index, is missing"),
        (cut_a_shard, "bytes instead of"),
        (empty_a_shard, "is damaged"),
        (lie_in_the_index, "do not agree on"),
        (name_a_shard_outside, "a shard is no file of this folder"),
    ],
)
def test_damaged_shards_are_named(harm, said, untied, tmp_path):
    folder = tmp_path / "harmed"
    shutil.copytree(untied, folder)
    harm(folder)
    with pytest.raises(ForgeError, match=said) as caught:
        Checkpoint(folder)
    assert caught.value.code == INTEGRITY


def test_a_file_that_does_not_close_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def close(self):
            if not self.closed:
                super().close()
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(OSError, match="No space left"), sharding.Writer(tmp_path / "file") as out:
        out.put(b"some")


def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path):
    with pytest.raises(OSError, match="No space left"), sharding.Writer(Path("/dev/full")) as out:
        for _ in range(20):
            out.put(bytes(1000))


# -- running a model from the disk --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Token ids by chance, the last ones of each row carrying loss."""
    noise = np.random.default_rng(1)
    lengths = ((9, 3), (40, 25), (17, 1))
    ids = [noise.integers(0, 512, length).tolist() for length, _ in lengths]
    return [
        {"input_ids": row, "labels": [-100] * (length - carried) + row[-carried:]}
        for row, (length, carried) in zip(ids, lengths, strict=True)
    ]


@pytest.mark.parametrize("kind", ["base", "lora", "dora"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_streamed_model_says_what_a_loaded_one_says(kind, tied, base, untied, rows, tmp_path, monkeypatch):
    folder = base if tied else untied
    adapter = None if kind == "base" else new_adapter(folder, tmp_path / "adapter", **KINDS[kind])
    monkeypatch.setattr(merging, "AT_ONCE", 1 << 15)  # the head in pieces, too
    loaded = models.causal_lm(folder, "float32", where="cpu")
    wanted = compare.scores(compare.hugging_face(models.with_adapter(loaded, adapter) if adapter else loaded), rows)
    weights = merging.Weights(folder, "bfloat16")
    for _ in range(2):  # a second time: what was taken away is fetched again
        found = compare.scores(streaming.scorer(weights, adapter), rows)
        assert [item.shape for item in found] == [item.shape for item in wanted]
        assert max(np.abs(ours - theirs).max() for ours, theirs in zip(found, wanted, strict=True)) < 1e-4


def says_the_same(folder: Path, adapter: Path | None, rows: list[dict]) -> None:
    loaded = models.causal_lm(folder, "float32", where="cpu")
    wanted = compare.scores(compare.hugging_face(models.with_adapter(loaded, adapter) if adapter else loaded), rows)
    found = compare.scores(streaming.scorer(merging.Weights(folder, "bfloat16"), adapter), rows)
    assert max(np.abs(ours - theirs).max() for ours, theirs in zip(found, wanted, strict=True)) < 1e-4


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_the_head_is_heard(dora, untied, rows, tmp_path):
    settings = {"r": 4, "target_modules": ["q_proj", "lm_head"], "use_dora": dora}
    says_the_same(untied, new_adapter(untied, tmp_path / "adapter", **settings), rows)


def test_embeddings_that_are_scaled(rows, tmp_path):
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(3)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    settings = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    Gemma2ForCausalLM(settings).to(torch.bfloat16).save_pretrained(tmp_path)
    says_the_same(tmp_path, None, rows)


def test_rows_go_through_in_groups_of_a_bounded_size(rows, monkeypatch):
    monkeypatch.setattr(streaming, "TOKENS_AT_ONCE", 2 * len(rows[1]["input_ids"]))
    groups = list(streaming.grouped(rows))
    assert [row for group in groups for row in group] == rows
    assert [len(group) for group in groups] == [2, 1]


def test_gguf_rows_are_grouped_by_tokens_rows_and_logits(rows, monkeypatch):
    many = rows * 50
    groups = list(compare.groups(many, 512))
    assert [row for group in groups for row in group] == many
    assert max(len(group) for group in groups) == compare.ROWS_AT_ONCE
    monkeypatch.setattr(compare, "LOGIT_BYTES", 1)
    assert {len(group) for group in compare.groups(rows, 512)} == {1}


# -- the phase ----------------------------------------------------------------------------------------------------


def test_an_impossible_wish_names_the_setting():
    import merge_adapter

    reason = merging.Unmergeable("the adapter has biases of its own")
    for chosen, keep, remedy in (
        ("dequantized", True, "set merge.base to base"),
        ("base", False, "set merge.keep to true"),
    ):
        with pytest.raises(ForgeError) as caught:
            merge_adapter.require_the_usual_way(chosen, keep, reason)
        assert (caught.value.code, caught.value.remedy) == (BAD_INPUT, remedy)
    merge_adapter.require_the_usual_way("base", True, reason)


@pytest.mark.parametrize(("stored", "written"), [("bfloat16", None), ("float32", "bfloat16")])
def test_the_config_is_carried_byte_for_byte_unless_the_type_changes(stored, written, tmp_path):
    import merge_adapter

    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir()
    target.mkdir()
    text = f'{{"model_type":   "qwen2", "dtype": "{stored}"}}'
    (base / "config.json").write_text(text, encoding="utf-8")
    (base / "tokenizer.json").write_bytes(b"\x00tokens")
    (base / "README.md").write_text("of the base", encoding="utf-8")
    merge_adapter.carry(base, target, "bfloat16", whole=False)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "tokenizer.json"]
    assert (target / "tokenizer.json").read_bytes() == b"\x00tokens"
    made = (target / "config.json").read_text(encoding="utf-8")
    assert made == text if written is None else json.loads(made)["dtype"] == written
