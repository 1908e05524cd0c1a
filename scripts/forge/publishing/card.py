"""The model card of a repository: one for each kind, made from records and verdicts alone, without time or machine.

The text is card.md.jinja beside this file, which huggingface_hub fills. Metadata are what the Hub takes:
a base model only where it has a name on the Hub, a licence by the Hub's own names.
"""

import json
import re
from pathlib import Path

from forge import VERSION, chat, manifest
from forge.llamacpp import ggufmeta
from forge.publishing import licences
from forge.publishing.evidence import Evidence
from forge.publishing.scan import Item

TEMPLATE = Path(__file__).with_name("card.md.jinja")
LIBRARIES = {"gguf": "gguf", "adapter": "peft", "merged": "transformers"}
TAGS = {"gguf": ["gguf", "llama.cpp", "ollama"], "adapter": ["lora"], "merged": []}
SETTINGS = (  # what a reader asks for first; all of them stand in the manifest
    "lora.r",
    "lora.lora_alpha",
    "lora.target_modules",
    "quantization.load_in_4bit",
    "training.stages",
    "training.num_train_epochs",
    "training.learning_rate",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.max_length",
    "project.seed",
)


def of(evidence: Evidence, repo: str, items: list[Item]):
    """huggingface_hub's ModelCard for the files that are sent."""
    from huggingface_hub import ModelCard

    values = evidence.config.values
    project = _project(evidence)
    base = evidence.facts("model")
    told = evidence.records.get("modelfile", {})
    return ModelCard.from_template(
        _metadata(evidence, project),
        template_path=str(TEMPLATE),
        kind=evidence.kind,
        repo=repo,
        name=project["name"],
        version=project["version"],
        description=cell(project["description"]),
        system_prompt=cell(project["system_prompt"]),
        messages=_messages(project),
        alias=values.ollama.model_name or project["name"].lower(),
        base=base,
        base_name=shown(base["base_model_name"]),
        on_hub=on_hub(base["base_model_name"]),
        base_digest=manifest.digest(evidence.records["model"]),
        rows=evidence.facts("dataset")["rows"],
        data_digest=manifest.digest(evidence.records["dataset"]),
        settings=_settings(evidence),
        files=[item for item in items if not item.name.startswith("verdicts/")],
        deployed=told.get("deployed"),
        quantization=told["files"][0]["quantization"] if told else None,
        parameters=told.get("parameters"),
        has_template=bool(told and told["ollama_template"]["name"]),
        verdicts={name: content["verdict"] for name, content in evidence.verdicts.items()},
        overrides={name: cell(reason) for name, reason in evidence.overrides.items()},
        evaluation=evidence.verdicts["evaluate"]["verdict"],
        targets=evidence.verdicts["evaluate"].get("targets", []),
        signals=[_signal(item) for item in evidence.verdicts["evaluate"].get("signals", [])],
        results=_results(evidence),
        fidelity=evidence.verdicts.get("verify-gguf", {}).get("fidelity", {}),
        licence=licence(evidence),
        model_forge=VERSION,
    )


def _messages(project: dict) -> str:
    """A conversation as it is written in Python (and JSON), the system prompt in front."""
    return json.dumps(chat.conversation(project["system_prompt"], project["identity"]["question"]), ensure_ascii=False)


def cell(text: object) -> str:
    """One line that stays in its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def on_hub(name: str) -> bool:
    """Whether the base's name is a repository's."""
    return not name.startswith("pypi:") and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def shown(name: str) -> str:
    """The base's name for a reader: of one in a package the file and the package, of a folder its last part."""
    if name.startswith("pypi:"):
        package, _, member = name.removeprefix("pypi:").partition("/")
        return f"{Path(member).stem} (of the package {package})"
    return ggufmeta.public_name(name)


def _project(evidence: Evidence) -> dict:
    """Name, version, licence and so on: of a GGUF those that it was made with."""
    if "modelfile" in evidence.records:
        return evidence.records["modelfile"]["settings"]["project"]
    return evidence.config.values.project.model_dump(mode="json")


def licence(evidence: Evidence) -> list[str]:
    """What is known of the licences, in sentences."""
    folder = evidence.config.layout.base
    found = licences.told(*licences_of(evidence))
    if not any(folder.glob("LICENSE*")):
        found.append("No LICENSE file came with the base, so there is none here.")
    return found


def licences_of(evidence: Evidence) -> tuple[str, str | None, str]:
    """The project's licence, its base's (None: not known), and how that is known."""
    name = evidence.facts("model")["base_model_name"]
    return _project(evidence)["license"], *licences.of_base(name, evidence.config.layout.base)


def _metadata(evidence: Evidence, project: dict):
    from huggingface_hub import ModelCardData

    names = [source["path"] for source in evidence.facts("dataset").get("sources", [])]
    data = [name.removeprefix("hub:") for name in names if name.startswith("hub:")]
    return ModelCardData(
        **_base_model(evidence),
        **licences.metadata(project["license"]),
        library_name=LIBRARIES[evidence.kind],
        pipeline_tag="text-generation",
        tags=["model-forge", "conversational", *TAGS[evidence.kind]],
        datasets=data or None,
    )


def _base_model(evidence: Evidence) -> dict[str, str]:
    """`base_model` and what this is of it. A GGUF is a quantization of the merged model where that was published."""
    merged = _published_merged(evidence) if evidence.kind == "gguf" else None
    if merged:
        return {"base_model": merged, "base_model_relation": "quantized"}
    name = evidence.facts("model")["base_model_name"]
    if not on_hub(name):
        return {}
    return {"base_model": name, "base_model_relation": "adapter" if evidence.kind == "adapter" else "finetune"}


def _published_merged(evidence: Evidence) -> str | None:
    """Repository of the merged model that this GGUF was made from, if it was sent."""
    path = evidence.config.layout.upload
    sent = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made_from = {item["name"]: item["sha256"] for item in evidence.records["gguf"]["inputs"]}.get("merge")
    return next((repo for repo, told in sent.items() if told["kind"] == "merged" and told["digest"] == made_from), None)


def _settings(evidence: Evidence) -> list[tuple[str, str]]:
    found = []
    for dotted in SETTINGS:
        value: object = evidence.records["train"]["settings"]
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found.append((dotted, cell(", ".join(map(str, value)) if isinstance(value, list) else value)))
    return found


def _signal(item: dict) -> dict[str, str]:
    """One line of the evaluation, as text: `-` where nothing was measured."""
    interval = item.get("interval") or [None, None]
    return {
        "name": cell(item["name"]),
        "role": item["role"],
        "value": _number(item["value"]),
        "interval": "-" if None in interval else f"{interval[0]:.3g} to {interval[1]:.3g}",
        "limit": _number(item.get("limit")),
        "sides": "-" if item.get("tuned") is None else f"{item['baseline']:.3g} / {item['tuned']:.3g}",
        "n": f"{item['n']}" + (f", {item['unscored']} not scored" if item.get("unscored") else ""),
        "unit": item.get("unit") or "-",
        "verdict": item["verdict"] or "-",
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _results(evidence: Evidence) -> dict:
    """Held-out text: the base, the tuned model and, of a GGUF, each file. Losses in nats a token."""
    if "modelfile" in evidence.records:
        return evidence.records["modelfile"]["results"]
    found = evidence.verdicts["verify-adapter"]
    compared = found["comparison"]
    loss = {"base": compared["reference_loss"], "tuned": compared["other_loss"]}
    merged = evidence.verdicts.get("verify-merged")
    return {
        "questions": found["answers"],
        "loss": {"rows": compared["n_rows"], "tokens": compared["n_tokens"], **loss},
        "mean_kl": {"merged": merged["comparison"]["mean_kl"]} if merged else {},
    }
