"""The disk that the phases will want: sizes by hand and by peft, old beside new, several file systems, too little."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from forge import disk, graph, models, schema
from forge.errors import ENVIRONMENT, ForgeError

LAYOUT = graph.Layout("test", Path("models/base/x"))
GB = 10**9


def values(**sections) -> schema.TrainingConfig:
    needed = {
        "project": {"name": "test"},
        "model": {"base_model_name": "org/tiny"},
        "data": {"sources": [{"path": "documents"}]},
    }
    return schema.TrainingConfig.model_validate(needed | sections)


def smollm2() -> dict[str, tuple[int, ...]]:
    """Shapes of SmolLM2-135M, whose embedding is its output, too."""
    shapes = {"model.embed_tokens.weight": (49152, 576), "model.norm.weight": (576,)}
    rows = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}
    for layer in range(30):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{name}_proj.weight": shape for name, shape in rows.items()}
        shapes |= {f"{place}.mlp.{name}_proj.weight": (1536, 576) for name in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj.weight"] = (576, 1536)
        shapes |= {f"{place}.{name}_layernorm.weight": (576,) for name in ("input", "post_attention")}
    return shapes


# -- sizes --------------------------------------------------------------------------------------------------------


def test_bytes_a_phase_of_the_starter():
    """Its files have 39,131,224 (adapter), 269,060,552 (merged) and 105,454,176 bytes (Q4_K_M), headers included."""
    assert disk.weights(smollm2()) == 134_515_008
    assert disk.adapter_weights(smollm2(), 32, "all-linear") == 9_768_960
    found = disk.needed(LAYOUT, smollm2(), "bfloat16", values(lora={"r": 32}), carried=3_500_000)
    adapter, whole = 9_768_960, 2 * 134_515_008 + 3_500_000
    embedding = 49152 * 576
    quantized = int((embedding * 8.5 + (134_515_008 - embedding) * 4.89 * 1.15) / 8) + 3_500_000
    assert found == {
        "train": 3 * (12 * adapter + 3_500_000) + 4 * adapter,
        "merge": whole,
        "gguf": quantized,
    }
    assert 105_454_176 < quantized < 1.06 * 105_454_176


def test_a_file_of_the_converters_own_type_is_counted_once():
    shapes = {"a.weight": (256, 256)}
    found = disk.items(LAYOUT, shapes, "bfloat16", values(gguf={"quantizations": ["BF16", "F16", "Q8_0"]}))
    assert [(item.path.name, item.size, item.stays) for item in found if item.phase == "gguf"] == [
        ("test-BF16.gguf", 2 * 65536, True),
        ("test-F16.gguf", 2 * 65536, True),
        ("test-Q8_0.gguf", int(65536 * 8.5 / 8), True),
    ]


def test_merged_weights_in_32_bits():
    found = disk.needed(LAYOUT, {"a.weight": (256, 256)}, "float32", values())
    assert found["merge"] == 4 * 65536


def test_an_importance_matrix_takes_a_16_bit_file_for_a_while():
    found = disk.items(LAYOUT, {"a.weight": (256, 256)}, "bfloat16", values(gguf={"importance_matrix": True}))
    assert [(item.size, item.stays) for item in found if item.phase == "gguf"][0] == (2 * 65536, False)


def test_a_merged_model_that_is_not_kept_takes_no_disk():
    found = disk.needed(LAYOUT, {"a.weight": (256, 256)}, "bfloat16", values(merge={"keep": False}), carried=7)
    assert found["merge"] == 7


@pytest.mark.parametrize("quantization", [name for name in schema.QUANTIZATIONS if name[0] in "QIT"])
@pytest.mark.parametrize("width", [256, 250])
def test_no_quantization_is_larger_than_the_largest(quantization, width):
    size = disk.gguf_bytes({"a.weight": (1000, width)}, quantization)
    assert 2 * 1000 * width / 8 < size <= 1000 * width * 8.5 / 8


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "mlp.down_proj"], r".*layers\.1\..*_proj"])
def test_an_adapter_has_as_many_numbers_as_pefts(target):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=1, **sizes))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM"))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained == disk.adapter_weights(shapes, 4, target) > 0


def test_shapes_are_those_of_the_weights(tiny_base):
    shapes = models.tensor_shapes(tiny_base)
    assert shapes["model.embed_tokens.weight"] == (151936, 256)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (128, 256)
    header = 8 + int.from_bytes((tiny_base / "model.safetensors").read_bytes()[:8], "little")
    assert header + 2 * disk.weights(shapes) == models.weight_bytes(tiny_base)


# -- at any time --------------------------------------------------------------------------------------------------


def file(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


ITEMS = [
    disk.Item("train", LAYOUT.checkpoints, 300, False, False),
    disk.Item("train", LAYOUT.adapter, 10, True, False),
    disk.Item("merge", LAYOUT.merged, 1000, True, True),
    disk.Item("gguf", LAYOUT.gguf("BF16"), 1000, False, True),
    disk.Item("gguf", LAYOUT.gguf("Q4_K_M"), 300, True, True),
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)


def test_the_first_time_the_end_takes_most():
    assert disk.most(ITEMS) == {Path("models"): 10 + 1000 + 1000 + 300}


def test_what_is_replaced_is_free_again_after_its_phase():
    file(LAYOUT.merged / "model.safetensors", 990)
    file(LAYOUT.gguf("Q4_K_M"), 290)
    file(LAYOUT.adapter / "adapter_model.safetensors", 10)  # goes to the archive
    assert disk.most(ITEMS) == {Path("models"): 10 + (1000 - 990) + 1000 + 300}
    assert disk.most(ITEMS[:3]) == {Path("models"): 10 + 1000}


def test_each_file_system_for_itself(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    Path("models/gguf").symlink_to(other)
    assert disk.most(ITEMS) == {Path("models"): 10 + 1000, Path("models/gguf"): 1000 + 300}


# -- too little ---------------------------------------------------------------------------------------------------


def run(base: Path) -> SimpleNamespace:
    config = SimpleNamespace(values=values(gguf={"quantizations": ["Q8_0"]}))
    return SimpleNamespace(layout=graph.Layout("test", base), config=config, facts=lambda phase: {"dtype": "bfloat16"})


@pytest.fixture
def large(tmp_path) -> Path:
    """A base with 10 billion weights in one matrix: a header, and a hole of 20 GB behind it."""
    header = b'{"a.weight":{"dtype":"BF16","shape":[100000,100000],"data_offsets":[0,20000000000]}}'
    folder = tmp_path / "base"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        handle.truncate(8 + len(header) + 20 * GB)
    return folder


def test_too_little_disk_ends_with_7_and_both_figures(large, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=60 * GB, used=10 * GB, free=30 * GB))
    with pytest.raises(ForgeError) as caught:
        disk.require(run(large))
    assert caught.value.code == ENVIRONMENT
    assert caught.value.cause == (
        "the way to the GGUF (train 0.1, merge 20.0, gguf 10.6 GB) needs 31.3 GB of disk in models, 30.0 GB are free"
    )
    assert caught.value.remedy == (
        "free some space (scripts/runs.py --prune, make clean-models) or move the checkout to a larger disk"
    )


def test_enough_disk(large, monkeypatch):
    asked = []
    free = SimpleNamespace(total=60 * GB, used=0, free=53 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or free)
    assert disk.require(run(large)) is None
    assert asked == [Path("models")]
