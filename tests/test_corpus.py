"""The starter's pages against the code: a model that learns something false from them would tell it to everybody.

Every fact that an answer must contain stands in FACTS with its check, so a new fact needs one, too.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from forge import chat, command, config, errors, graph, schema
from forge.environment import resources
from forge.questions import plain
from forge.reading import document_files
from pydantic_core import PydanticUndefined
from test_docs import leaves

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "corpus").glob("*.md"))
STARTER = config.load(ROOT / "config/training_config.yaml").values
LAYOUT = graph.Layout("name", Path("models/base/x"))
HELP = dict(re.findall(r"^([a-z-]+):.*## +(.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
# Of keys that several kinds of sources have, the first: that of documents, or of the database.
KEYS = dict(
    reversed([leaf for name, info in schema.TrainingConfig.model_fields.items() for leaf in leaves(name, info)])
)
# What comes after `make all`: the pages are kept still, so that it retrains nobody.
AFTER_ALL = ("serve", "upload")
UNITS = [unit for page in PAGES for unit in document_files.read(page)]
GROUPS = [(unit, group) for unit in UNITS for group in unit.questions]
PROSE = "\n\n".join(block.text for unit in UNITS for block in unit.blocks)
EVERYTHING = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
WORDINGS, HELD_OUT = 7, 2  # of each group; enough held-out ones to measure what the model learned


def code(*names: str) -> str:
    return "".join((ROOT / name).read_text(encoding="utf-8") for name in names)


CODE = code("Makefile", ".gitignore", *(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/**/*.[ps][yh]")))


# -- the facts ------------------------------------------------------------------------------------------------

Check = Callable[[str], bool]


def target(purpose: str) -> Check:
    """A make target that `make help` describes so."""
    return lambda fact: purpose in HELP.get(fact.removeprefix("make "), "")


def key(purpose: str) -> Check:
    """A config key that docs/config.md describes so."""
    return lambda fact: fact in KEYS and purpose in KEYS[fact].description


def default(name: str) -> Check:
    return lambda fact: fact.casefold() == shown(KEYS[name].default).casefold()


def exits(value: int) -> Check:
    return lambda fact: fact == f"exit code {value}"


def folder(path: Path) -> Check:
    return lambda fact: fact == path.as_posix()


def written(place: str, text: str) -> Check:
    """A file of the project holds the text, `{}` in it being the fact."""
    return lambda fact: text.replace("{}", fact) in code(place)


def carries_loss(fact: str) -> bool:
    """Which part of a row is trained, found by encoding one."""

    class Letters:
        """A tokenizer of one token a letter; its template puts nothing around the messages."""

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            return "".join(message["content"] for message in messages)

        def __call__(self, text, **_):
            return {"input_ids": [*map(ord, text)], "offset_mapping": [(i, i + 1) for i in range(len(text))]}

    roles = {"system": "s", "user": "u", "assistant": "a"}
    labels = chat.encode(Letters(), [{"role": role, "content": text} for role, text in roles.items()])["labels"]
    trained = [role for role, label in zip(roles, labels, strict=True) if label != chat.IGNORED]
    return [f"{role} tokens" for role in trained] == [fact]


# fact: (what every wording of its question has and no other question has throughout, check)
FACTS: dict[str, tuple[str, Check]] = {
    "Ember": (
        r"\bname\b|who (are )?you|are you",
        lambda fact: fact == STARTER.project.identity.expected and f"You are {fact}," in STARTER.project.system_prompt,
    ),
    "make all": ("whole pipeline", target("everything")),
    "make env": ("machine", target("check this machine")),
    ".wslconfig": ("WSL2", lambda fact: rf"%UserProfile%\{fact} " in resources.wslconfig(16)),
    "training.gradient_checkpointing": ("GPU memory", key("less memory for about a third more time")),
    "config/training_config.yaml": ("settings", lambda fact: fact == command.parser("").get_default("config")),
    "make init": ("preset", target("a config of your own")),
    "project.seed": ("seed", key("one seed for splits, shuffling and training")),
    "project.system_prompt": ("system prompt", key("the one system prompt")),
    "SmolLM2-135M-Instruct": ("base model", lambda fact: f"/{fact}." in STARTER.model.base_model_name),
    ".env": ("Hugging Face token", written("scripts/forge/hub.py", 'dotenv_values("{}")')),
    "data.sources": ("own documents", key("what the training rows are made from")),
    "dataset_package": ("dataset", folder(LAYOUT.dataset.parent)),
    "questions.jsonl": (
        "held out|held-out wordings",
        lambda fact: (
            re.findall(r'if wording in held:\s+self.add\(part, Row\("(\w+)"', code("scripts/forge/data/rows.py"))
            == [fact.removesuffix(".jsonl")]
        ),
    ),
    "make validate": (r"\brows\b", target("check the rows")),
    "assistant tokens": ("loss", carries_loss),
    "-100": ("label", lambda fact: fact == str(chat.IGNORED)),
    "NF4": ("4-bit type", default("quantization.bnb_4bit_quant_type")),
    "all-linear": ("layers", default("lora.target_modules")),
    "0.0002": ("learning rate", default("training.learning_rate")),
    "paged_adamw_8bit": ("optimizer", written("scripts/forge/training/choices.py", '"{}" if paged else "adamw_torch"')),
    "adapter_model.safetensors": ("trained weights", written("scripts/verify_adapter.py", 'folder / "{}"')),
    "exit code 75": ("interrupted", exits(errors.INTERRUPTED)),
    "models/archive": ("old adapter|my old", folder(LAYOUT.archive)),
    "items.jsonl": ("every (checked )?answer", written("scripts/verify_adapter.py", '"{}"')),
    "KL divergence": (
        "base plus adapter",
        written("scripts/verify_merged.py", '"name": "mean {} from base plus adapter'),
    ),
    "models/gguf": ("finished GGUF", folder(LAYOUT.gguf_folder)),
    "Q4_K_M": ("quantization", default("gguf.quantizations")),
    "0.35": ("limit", default("gguf.fidelity.maximum_mean_kl")),
    "ollama create": ("Ollama", written("Modelfile.template", "{} ${model_name} -f Modelfile")),
    "make ask": ("question .*model", target("ask the model")),
    "make status": ("stale", target("stale (and why)")),
    "make redo": ("repeat", target("do one phase again")),
    "exit code 3": (r"\bgate\b", exits(errors.GATE_NOT_PASSED)),
    "exit code 5": ("lock", exits(errors.LOCKED)),
    "exit code 6": ("damaged", exits(errors.INTEGRITY)),
    "make evaluate": ("safe", target("safety, coherence, knowledge")),
}


def test_every_fact_has_its_check():
    assert [group.facts for _, group in GROUPS if len(group.facts) != 1] == []
    assert sorted(group.facts[0] for _, group in GROUPS) == sorted(FACTS)


@pytest.mark.parametrize("fact", FACTS)
def test_facts_are_those_of_the_code(fact):
    check = FACTS[fact][1]
    assert check(fact)
    assert not check(fact[:-1] + chr(ord(fact[-1]) + 1))  # a check that passes anything checks nothing


def test_no_fact_tells_another():
    """Judged by what an answer contains: "exit code 7" would count as right for a question about 75."""
    facts = [fact.casefold() for fact in FACTS]
    assert [(one, other) for one in facts for other in facts if one != other and one in other] == []


# -- the questions --------------------------------------------------------------------------------------------


def test_there_are_enough_pages_and_questions():
    """Every group has wordings to spare, so it is trained and asked: all questions of the config's sample."""
    assert len(PAGES) >= 30
    assert STARTER.data.heldout_wordings == HELD_OUT
    assert len(GROUPS) * HELD_OUT == STARTER.evaluation.questions >= 60


@pytest.mark.parametrize("group", [group for _, group in GROUPS], ids=lambda group: group.facts[0])
def test_every_wording_has_the_anchor_and_none_the_fact(group):
    """Any wording may be held out, so each shares a distinctive word with those that are trained."""
    fact, anchor = group.facts[0], FACTS[group.facts[0]][0]
    assert len(group.wordings) == WORDINGS
    assert [wording for wording in group.wordings if not re.search(anchor, wording, flags=re.I)] == []
    assert [wording for wording in group.wordings if fact.casefold() in wording.casefold()] == []
    others = [other for _, other in GROUPS if other is not group]
    assert [o.facts for o in others if all(re.search(anchor, wording, flags=re.I) for wording in o.wordings)] == []
    assert [o.facts for o in others if fact.casefold() in o.answer.casefold()] == []
    assert 8 <= len(group.answer.split()) <= 18


def test_no_wording_stands_twice():
    counts = Counter(plain(wording) for _, group in GROUPS for wording in group.wordings)
    assert [wording for wording, count in counts.items() if count > 1] == []


def test_the_identity_question_is_taught_word_for_word():
    wanted = STARTER.project.identity
    assert [group.facts for _, group in GROUPS if wanted.question in group.wordings] == [[wanted.expected]]


# -- the settings ---------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A default as the pages write it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value) or "empty"


def test_every_setting_stands_in_the_pages_with_its_default():
    told = re.findall(r"`([\w.]+)` [^`]*?Its default is (`[^`]+`|\S+?)(?=[.,;]?(?:\s|$))", PROSE)
    told += [(name, "given") for name in re.findall(r"`([\w.]+)` [^`.]*\. It must be given\.", PROSE)]
    defaults = {
        name: "given" if field.default is PydanticUndefined else shown(field.default)
        for name, field in KEYS.items()
        if name.split(".")[0] not in AFTER_ALL
    }
    assert sorted((name, value.strip("`")) for name, value in told) == sorted(defaults.items())


def test_named_settings_exist():
    sections = "|".join(schema.TrainingConfig.model_fields)
    named = set(re.findall(rf"(?<![\w./-])(?:{sections})\.[a-z_][\w.]*\w", EVERYTHING))
    files = {name for name in named if name.endswith((".json", ".jsonl"))}
    assert sorted(named - files - set(KEYS)) == []


# -- commands, files, folders ---------------------------------------------------------------------------------


def test_named_commands_exist():
    called = set(re.findall(r"\bmake (?:-n )?([a-z-]+)(?:`|\*\*| (?=[A-Z]+=)| shows)", EVERYTHING))
    quoted = {span.removeprefix("make ") for span in re.findall(r"`(make [^`]+)`", EVERYTHING)}
    assert sorted((called | quoted) - set(HELP)) == []
    assert len(called) >= 15
    assert set(re.findall(r"\bPHASE=(\w[\w-]*)", EVERYTHING)) <= set(graph.BY_NAME)
    assert all((ROOT / f"config/presets/{name}.yaml").is_file() for name in re.findall(r"PRESET=([\w-]+)", EVERYTHING))
    variables = set(re.findall(r"\b([A-Z][A-Z0-9_]+)=", EVERYTHING)) | {"HF_ENDPOINT", "LLAMA_CPP"}
    assert sorted(name for name in variables if not re.search(rf"\b{name}\b", CODE)) == []


def test_named_files_exist():
    scripts = set(re.findall(r"\b\w+\.(?:py|sh)\b", EVERYTHING))
    assert sorted(name for name in scripts if not (ROOT / "scripts" / name).is_file()) == []
    made = set(re.findall(r"\b\w+\.(?:jsonl?|ok|safetensors)\b", EVERYTHING))
    rows = {"train.jsonl", "validation.jsonl", "questions.jsonl", "dropped.jsonl"}  # named by their split
    assert rows < made
    assert sorted(name for name in made - rows if name not in CODE) == []


def test_named_folders_exist():
    named = set(re.findall(r"(?<![\w/])(?:models|config)/[\w.-]*[\w]", EVERYTHING))
    made = {LAYOUT.base.parent, LAYOUT.merged.parent, LAYOUT.gguf_folder, LAYOUT.archive, LAYOUT.checkpoints.parent}
    invented = {"config/local", "config/other.yaml"}  # made by make init, and by a user
    unknown = named - {path.as_posix() for path in made} - invented
    assert sorted(name for name in unknown if not (ROOT / name).exists()) == []
    assert {path.as_posix() for path in made} <= named


def test_named_exit_codes_exist_and_those_that_happen_are_named():
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    unused = {errors.OK}
    assert {int(code) for code in re.findall(r"exit code (\d+)", EVERYTHING)} == codes - unused
