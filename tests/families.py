"""Tiny bases of each family: random weights of its architecture, its real vocabulary and its real chat template.

Each lies in a folder as the family's own repositories do, so that what reads it (transformers, llama.cpp's converter)
takes the same way. 256 wide, so that llama.cpp's K-quants, which work on blocks of 256, are real ones. Vocabularies and
templates are those inside the pinned llama-cpp-python.
"""

import json
import re
import shutil
from pathlib import Path

from forge.llamacpp import llama

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,  # at the usual 0.02 attention is all but even: what is wrong with it would not be seen
}


def vocabulary(name: str):
    """The tokenizer of a vocabulary that comes with llama.cpp, by transformers' own reader of such files."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    path = llama.source() / f"models/ggml-vocab-{name}.gguf"
    architecture, content, names = get_gguf_tokenizer(str(path))
    names = {key: value for key, value in names.items() if key.endswith("_token") and isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=convert_gguf_tokenizer(architecture, content)[0], **names)


def template(name: str) -> str:
    return (llama.source() / f"models/templates/{name}.jinja").read_text(encoding="utf-8")


def save(folder: Path, model_class, settings) -> Path:
    import torch

    torch.manual_seed(1)
    model_class(settings).to(torch.bfloat16).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: object) -> dict:
    """A JSON file with some keys changed."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return content


def rename(path: Path, names: dict[str, str]) -> None:
    """Tokens under other names, wherever they stand in a tokenizer.json."""
    text = path.read_text(encoding="utf-8")
    for old, new in names.items():
        assert json.dumps(old) in text, old
        text = text.replace(json.dumps(old), json.dumps(new))
    path.write_text(text, encoding="utf-8")


def scores(name: str) -> list[float]:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    key = "tokenizer.ggml.scores"
    return read_gguf_metadata(str(llama.source() / f"models/ggml-vocab-{name}.gguf"), (key,))[0][key]


def sentencepiece(folder: Path, ranks: list[float]) -> None:
    """tokenizer.model beside tokenizer.json, with a piece for each of `ranks`: the converter reads them there."""
    from sentencepiece import sentencepiece_model_pb2

    made = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = made["model"]["vocab"] | {token["content"]: token["id"] for token in made["added_tokens"]}
    special = {token["content"] for token in made["added_tokens"] if token["special"]}
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    kinds = model.SentencePiece
    for (piece, _), score in zip(sorted(names.items(), key=lambda item: item[1]), ranks, strict=False):
        kind = kinds.NORMAL
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            kind = kinds.BYTE
        elif piece in special:
            kind = kinds.UNKNOWN if piece == "<unk>" else kinds.CONTROL
        model.pieces.add(piece=piece, score=score, type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


# -- the families ------------------------------------------------------------------------------------------------


def tiny_llama(folder: Path) -> Path:
    """Llama-3.1's vocabulary. transformers' reader of GGUF files leaves out what llama.cpp's converter knows the
    tokenizer by: the start token in front, and that whole words are looked up before they are merged."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary("llama-bpe").save_pretrained(folder)
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    made["model"]["ignore_merges"] = True
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < 128256]  # it adds one of its own
    start = "<|begin_of_text|>"
    first, text = {"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start: {"id": start, "ids": [128000], "tokens": [start]}},
    }
    path.write_text(json.dumps(made), encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template("meta-llama-Llama-3.1-8B-Instruct"), encoding="utf-8")
    ends = [128001, 128008, 128009]
    return save(
        folder, LlamaForCausalLM, LlamaConfig(vocab_size=128256, bos_token_id=128000, eos_token_id=ends, **SMALL)
    )


def tiny_mistral(folder: Path) -> Path:
    """Llama's SentencePiece vocabulary, which Mistral's is made like, with [INST] and [/INST] as in v0.3.

    llama.cpp holds the template of Mistral-Nemo; v0.3's is the same with a space before question and answer, and
    the answer's own white space taken off. The repository has tokenizer.model beside tokenizer.json: without it the
    converter knows no scores.
    """
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = vocabulary("llama-spm")
    tokenizer.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", add_prefix_space=True)
    sentencepiece(folder, [*scores("llama-spm"), 0, 0])
    text = template("mistralai-Mistral-Nemo-Instruct-2407").replace('"[INST]"', '"[INST] "')
    text = text.replace('{{- message["content"] + eos_token}}', '{{- " " + message["content"]|trim + eos_token}}')
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    sizes = MistralConfig(
        vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, sliding_window=None, head_dim=64, **SMALL
    )
    return save(folder, MistralForCausalLM, sizes)


def tiny_qwen2(folder: Path) -> Path:
    """Qwen2's vocabulary with the template of Qwen2.5."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    qwen(folder, "Qwen-Qwen2.5-7B-Instruct", names)
    sizes = Qwen2Config(vocab_size=151936, bos_token_id=None, eos_token_id=151645, pad_token_id=151643, **SMALL)
    return save(folder, Qwen2ForCausalLM, sizes)


def tiny_qwen3(folder: Path) -> Path:
    """Qwen2's vocabulary with two tokens that Qwen3 added, in their places; its template writes an empty thought."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    qwen(folder, "Qwen-Qwen3-0.6B", names)
    rename(folder / "tokenizer.json", {"[PAD151667]": "<think>", "[PAD151668]": "</think>"})
    ends = [151645, 151643]
    sizes = Qwen3Config(
        vocab_size=151936, bos_token_id=None, eos_token_id=ends, tie_word_embeddings=True, head_dim=64, **SMALL
    )
    return save(folder, Qwen3ForCausalLM, sizes)


def qwen(folder: Path, templated: str, names: dict) -> None:
    tokenizer = vocabulary("qwen2")
    for name, token in names.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template(templated)
    tokenizer.save_pretrained(folder)


def tiny_gemma2(folder: Path) -> Path:
    """Gemma's vocabulary as the fourth generation has it, its turn's tokens named as in the second.

    The sliding window is shorter than the rows, and the soft caps are low enough to bend the scores.
    """
    from transformers import Gemma2Config, Gemma2ForCausalLM

    vocabulary("gemma-4").save_pretrained(folder)
    rename(folder / "tokenizer.json", {"<|turn>": "<start_of_turn>", "<turn|>": "<end_of_turn>"})
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    sentencepiece(folder, [-place for place in range(262144)])  # this GGUF has merges, and scores that say nothing
    (folder / "chat_template.jinja").write_text(template("google-gemma-2-2b-it"), encoding="utf-8")
    sizes = Gemma2Config(
        vocab_size=262144,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=10.0,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        **(SMALL | {"initializer_range": 0.1}),
    )
    return save(folder, Gemma2ForCausalLM, sizes)


def tiny_phi3(folder: Path) -> Path:
    """Phi-3's vocabulary. Its control tokens swallow the spaces after them, which a GGUF does not say."""
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

    vocabulary("phi-3").save_pretrained(folder)
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    for token in made["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    edit(path, added_tokens=made["added_tokens"])
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": False}
    settings["added_tokens_decoder"] = {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in made["added_tokens"]
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | names), encoding="utf-8")
    added = {token["content"]: token["id"] for token in made["added_tokens"] if token["id"] >= 32000}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    sentencepiece(folder, scores("phi-3")[:32000])
    (folder / "chat_template.jinja").write_text(template("microsoft-Phi-3.5-mini-instruct"), encoding="utf-8")
    sizes = Phi3Config(
        vocab_size=32064,
        sliding_window=2047,
        original_max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=32000,
        pad_token_id=32000,
        **SMALL,
    )
    save(folder, Phi3ForCausalLM, sizes)
    GenerationConfig(bos_token_id=1, eos_token_id=[32000, 32001, 32007], pad_token_id=32000).save_pretrained(folder)
    return folder


def tiny_smollm(folder: Path, starter: Path) -> Path:
    """SmolLM2's vocabulary and template, from the starter's base."""
    from forge import models
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    for pattern in models.TOKENIZER_FILES:
        for path in starter.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    settings = json.loads((starter / "config.json").read_text(encoding="utf-8"))
    ids = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size")}
    return save(folder, LlamaForCausalLM, LlamaConfig(tie_word_embeddings=True, **ids, **SMALL))
