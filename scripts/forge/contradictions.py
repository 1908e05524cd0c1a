"""Settings that are fine alone and impossible together."""

from collections.abc import Iterator

from forge.schema import NEEDS_IMPORTANCE_MATRIX, TrainingConfig

#: Key, cause, remedy.
Contradiction = tuple[str, str, str]


def of(config: TrainingConfig) -> Iterator[Contradiction]:
    for found in (_lengths, _base, _gguf, _stages, _upload):
        yield from found(config)


def _lengths(config: TrainingConfig) -> Iterator[Contradiction]:
    longest = config.training.max_length
    if config.data.max_tokens > longest:
        yield (
            "data.max_tokens",
            f"rows of {config.data.max_tokens} tokens do not fit training.max_length {longest}",
            f"set data.max_tokens to {longest} or raise training.max_length",
        )
    if config.ollama.num_ctx is not None and config.ollama.num_ctx < longest:
        yield (
            "ollama.num_ctx",
            f"a context of {config.ollama.num_ctx} tokens is shorter than what was trained ({longest}): Ollama would "
            "cut the system prompt away",
            f"set ollama.num_ctx to {longest} or more, or to null",
        )
    if config.evaluation.max_new_tokens > longest:
        yield (
            "evaluation.max_new_tokens",
            "answers longer than training.max_length were never trained",
            f"set it to {longest} or less",
        )


def _base(config: TrainingConfig) -> Iterator[Contradiction]:
    if config.model.revision and config.model.base_model_name.startswith((".", "/", "~", "pypi:")):
        yield "model.revision", "a revision belongs to a Hub id only", "remove it, or name a Hub id as the base"


def _gguf(config: TrainingConfig) -> Iterator[Contradiction]:
    gguf = config.gguf
    needing = [name for name in gguf.quantizations if name in NEEDS_IMPORTANCE_MATRIX]
    if needing and not gguf.importance_matrix:
        yield (
            "gguf.quantizations",
            f"{needing[0]} needs an importance matrix",
            "set gguf.importance_matrix to true, or choose a larger one",
        )
    if config.merge.keep:
        return
    whole = [name for name in gguf.quantizations if name in ("F32", "F16", "BF16")]
    if whole:
        yield (
            "merge.keep",
            f"{whole[0]} is made from the merged model, which is not kept",
            f"set merge.keep to true, or take {whole[0]} off gguf.quantizations",
        )
    if gguf.importance_matrix:
        yield (
            "merge.keep",
            "an importance matrix is measured on the merged model, which is not kept",
            "set merge.keep to true or gguf.importance_matrix to false",
        )


def _stages(config: TrainingConfig) -> Iterator[Contradiction]:
    training = config.training
    if training.stages[0] != "sft" or len(set(training.stages)) != len(training.stages):
        yield (
            "training.stages",
            "the stages are sft first, then dpo or kto, each once",
            "write [sft], [sft, dpo], [sft, kto] or [sft, dpo, kto]",
        )
    if training.keep == "best" and training.save_steps % training.eval_steps:
        yield (
            "training.save_steps",
            f"the best checkpoint cannot be kept: checkpoints every {training.save_steps} steps, validation loss "
            f"every {training.eval_steps}",
            "make save_steps a multiple of eval_steps, or set training.keep to last",
        )
    if "kto" in training.stages and training.preference.per_device_train_batch_size == 1:
        yield (
            "training.preference.per_device_train_batch_size",
            "kto compares the rows of a batch with each other, so one row at once teaches nothing",
            "set it to 2 or more, and halve training.preference.gradient_accumulation_steps",
        )


def _upload(config: TrainingConfig) -> Iterator[Contradiction]:
    upload = config.upload
    if upload.repo and len(upload.what) > 1 and "{what}" not in upload.repo:
        yield (
            "upload.repo",
            f"{' and '.join(upload.what)} would share one repository, which has one card",
            f"write {upload.repo}-{{what}}, or name one kind in upload.what",
        )
