"""What is sent: a list of files by kind, each with its hash. Nothing that is not on the list leaves the machine.

Three files tell Ollama how to run a GGUF straight from the Hub, where it reads no Modelfile: `template` (Go's
template), `system` (the system prompt) and `params` (JSON). They say what the Modelfile says.
"""

import hashlib
import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from forge import files, models
from forge.errors import INTEGRITY, ForgeError
from forge.llamacpp import ggufmeta
from forge.publishing import card, licences
from forge.publishing.evidence import Evidence
from forge.publishing.scan import Item

# What --gguf, --modelfile and --readme stand for; the weights of the other kinds are of the part that they name.
PARTS = ("gguf", "adapter", "merged", "modelfile", "readme")
OLLAMA = ("template", "system", "params")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
MERGED_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *models.TOKENIZER_FILES,
)
LICENCE_FILES = models.LICENCE_FILES


@dataclass
class Plan:
    """`items` are sent, by name; `others` are of the same model and are not, because other parts were asked for.

    `missing`: files that the repository must not have, for Ollama reads them. `written`: the folder of the files that
    are made for the upload, the card among them.
    """

    kind: str
    repo: str
    private: bool
    evidence: Evidence
    written: Path
    items: list[Item] = field(default_factory=list)
    others: list[Item] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def licence(self) -> list[str]:
        return card.licence(self.evidence)

    def refuse_other_licence(self) -> None:
        """Raises ForgeError (2) where it would be public under a licence that the base's does not allow."""
        own, base, _ = card.licences_of(self.evidence)
        if not self.private and licences.conflict(own, base):
            raise ForgeError(
                f"project.license is {own}, the base is under {base}, which what is made from it keeps",
                f"set project.license to {base}, or upload.private to true",
            )

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def add(self, name: str, path: Path, known: dict) -> None:
        """A file of a phase, as its record has it."""
        self.items.append(Item(name, path, known["sha256"], known["size"]))

    def write(self, name: str, text: str) -> None:
        """A file that is made for the upload."""
        raw = text.encode("utf-8")
        files.write_if_changed(self.written / name, text)
        self.items.append(Item(name, self.written / name, hashlib.sha256(raw).hexdigest(), len(raw)))


def build(evidence: Evidence, repo: str, private: bool, parts: set[str]) -> Plan:
    """The files of one kind, of the given PARTS (none: all). Card and other made files are written aside, to read."""
    kind = evidence.kind
    plan = Plan(kind, repo, private, evidence, evidence.config.layout.build / "upload" / kind)
    files.remove(plan.written)
    {"gguf": _gguf, "adapter": _adapter, "merged": _merged}[kind](plan)
    _licence(plan)
    _verdicts(plan)
    part = dict.fromkeys((item.name for item in plan.items), kind)
    if kind == "gguf":
        _modelfile(plan)
        part |= {item.name: "modelfile" for item in plan.items if item.name not in part}
    plan.items.sort(key=lambda item: item.name)
    plan.write("README.md", str(card.of(evidence, repo, plan.items)))
    part["README.md"] = "readme"
    if parts:
        plan.others = [item for item in plan.items if part[item.name] not in parts]
        plan.items = [item for item in plan.items if part[item.name] in parts]
        plan.missing = plan.missing if "modelfile" in parts else []
    plan.items.sort(key=lambda item: item.name)
    return plan


def _gguf(plan: Plan) -> None:
    for name, known in plan.evidence.recorded("gguf").items():
        if name.endswith(".gguf"):
            plan.add(name, plan.evidence.folder("gguf") / name, known)
    path = plan.evidence.folder("modelfile") / f"{plan.evidence.config.layout.name}.manifest.json"
    plan.write("gguf_model_manifest.json", path.read_text(encoding="utf-8"))


def _adapter(plan: Plan) -> None:
    recorded, folder = plan.evidence.recorded("train"), plan.evidence.folder("train")
    named = plan.evidence.facts("model")["base_model_name"]
    public = ggufmeta.public_name(named)
    for name in ADAPTER_FILES:
        if name.endswith(".json") and public != named:  # a folder of this machine is nobody else's base
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            plan.write(name, json.dumps({**settings, "base_model_name_or_path": public}, indent=2) + "\n")
        else:
            plan.add(name, folder / name, recorded[name])
    _matching(plan, "model", models.TOKENIZER_FILES)


def _merged(plan: Plan) -> None:
    _matching(plan, "merge", MERGED_FILES)


def _licence(plan: Plan) -> None:
    """The base's licence goes along: most licences ask for it."""
    _matching(plan, "model", LICENCE_FILES)


def _matching(plan: Plan, phase: str, forms: tuple[str, ...]) -> None:
    for name, known in plan.evidence.recorded(phase).items():
        if "/" not in name and any(fnmatch(name, form) for form in forms):
            plan.add(name, plan.evidence.folder(phase) / name, known)


def _verdicts(plan: Plan) -> None:
    for gate in plan.evidence.verdicts:
        known = plan.evidence.recorded(gate)["verdict.json"]
        plan.add(f"verdicts/{gate}.json", plan.evidence.folder(gate) / "verdict.json", known)


def _modelfile(plan: Plan) -> None:
    """The Modelfile beside its GGUF, and what Ollama reads in its place on the Hub."""
    evidence, told = plan.evidence, plan.evidence.records["modelfile"]
    folder, deployed = evidence.folder("modelfile"), told["deployed"]
    text = (folder / f"{evidence.config.layout.name}.Modelfile").read_text(encoding="utf-8")
    here = f"FROM ./{(folder / deployed).as_posix()}\n"
    if text.count(here) != 1:
        raise ForgeError(
            f"the Modelfile does not name {deployed} by one line {here.strip()!r}",
            "keep `FROM ${from_path}` in Modelfile.template and run make modelfile",
        )
    plan.write("Modelfile", text.replace(here, f"FROM ./{deployed}\n"))
    contents = {
        "template": _template(evidence, told["ollama_template"]),
        "system": told["settings"]["project"]["system_prompt"],
        "params": json.dumps(told["parameters"], indent=2, ensure_ascii=False) + "\n",
    }
    for name, content in contents.items():
        if content:
            plan.write(name, content)
        else:
            plan.missing.append(name)


def _template(evidence: Evidence, told: dict) -> str:
    """The TEMPLATE that the Modelfile holds; empty where it holds none."""
    if told["name"] is None:
        return ""
    path = evidence.folder("verify-gguf") / "template"
    text = path.read_text(encoding="utf-8")
    if files.sha256_file(path) != told["sha256"]:
        raise ForgeError(f"{path} is not the TEMPLATE of the Modelfile", "run make modelfile", INTEGRITY)
    return text
