"""The phases, once: order, script, what each needs, which config values each reads, what each writes.

make's rules, the phase scripts, `make status` and the stamps are all checked against this table
(`tests/test_scripts.py` compares it with the Makefile).
"""

from dataclasses import dataclass
from pathlib import Path

GATES = Path("evaluation")
CACHE = GATES / ".cache"  # figures of the base, which do not depend on the tuned model


@dataclass(frozen=True)
class Phase:
    """One row of the graph.

    `needs`: phases whose output is read. `reads`: dotted config paths; only these reach the script, and
    only a change of these makes the phase run again. `gate`: writes its record only when it passes.
    `weights`: False where only small files of the inputs are read, so that 15 GB are not hashed for them.
    """

    name: str
    script: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    purpose: str
    gate: bool = False
    weights: bool = True

    def record(self, layout: "Layout") -> Path:
        """The file that make looks at: written last, and for a gate only on PASS."""
        return {
            "model": layout.base / "manifest.json",
            "dataset": layout.dataset / "manifest.json",
            "train": layout.adapter / "manifest.json",
            "merge": layout.merged / "manifest.json",
            "gguf": layout.gguf_folder / f"{layout.name}.gguf.json",
            "modelfile": layout.gguf_folder / f"{layout.name}.manifest.json",
        }.get(self.name, layout.gate(self.name) / "gate.ok")

    def folder(self, layout: "Layout") -> Path:
        """The folder that the names in the record are relative to."""
        return self.record(layout).parent


@dataclass(frozen=True)
class Layout:
    """Every generated path of one project, relative to the checkout."""

    name: str
    base: Path

    @property
    def build(self) -> Path:
        return Path("build") / self.name

    @property
    def dataset(self) -> Path:
        return Path("dataset_package") / self.name

    @property
    def adapter(self) -> Path:
        return Path("models") / f"{self.name}-adapter"

    @property
    def archive(self) -> Path:
        return Path("models/archive")

    @property
    def checkpoints(self) -> Path:
        return Path("models/checkpoints") / self.name

    @property
    def merged(self) -> Path:
        return Path("models/merged") / f"{self.name}-merged"

    @property
    def gguf_folder(self) -> Path:
        return Path("models/gguf")

    def gguf(self, quantization: str) -> Path:
        return self.gguf_folder / f"{self.name}-{quantization}.gguf"

    @property
    def upload(self) -> Path:
        """Record of what was sent to the Hub, by repository."""
        return Path("models/upload") / self.name / "upload.json"

    def gate(self, phase: str) -> Path:
        return GATES / self.name / phase

    def stamp(self, phase: str) -> Path:
        return self.build / f"{phase}.json"


# project.seed, system_prompt and identity are read where they change a result, and nowhere else: a new
# description retrains nobody.
PHASES = (
    Phase("model", "download_model.py", (), ("model",), "get the base model"),
    Phase(
        "dataset",
        "forge_dataset.py",
        ("model",),
        ("data", "project.seed", "project.system_prompt", "project.identity"),
        "documents to training rows",
        weights=False,
    ),
    Phase(
        "validate",
        "validate_dataset.py",
        ("model", "dataset"),
        ("data.thresholds", "training.max_length"),
        "check the rows",
        gate=True,
        weights=False,
    ),
    Phase(
        "train",
        "fine_tune.py",
        ("model", "dataset", "validate"),
        ("quantization", "lora", "training", "project.seed", "project.system_prompt"),
        "fine-tune an adapter (QLoRA)",
    ),
    Phase(
        "verify-adapter",
        "verify_adapter.py",
        ("model", "dataset", "train"),
        ("evaluation", "project.system_prompt"),
        "check the adapter",
        gate=True,
    ),
    Phase(
        "evaluate",
        "evaluate_model.py",
        ("model", "dataset", "train", "verify-adapter"),
        ("evaluation", "project.system_prompt"),
        "measure safety, coherence and knowledge beside the base",
        gate=True,
    ),
    Phase(
        "merge",
        "merge_adapter.py",
        ("model", "dataset", "train", "verify-adapter", "evaluate"),
        ("merge",),
        "merge the adapter into the base",
    ),
    Phase(
        "verify-merged",
        "verify_merged.py",
        ("model", "dataset", "train", "merge"),
        ("evaluation",),
        "check that merged equals base plus adapter",
        gate=True,
    ),
    Phase(
        "gguf",
        "convert_to_gguf.py",
        ("model", "dataset", "train", "evaluate", "merge", "verify-merged"),
        (
            "gguf.quantizations",
            "gguf.importance_matrix",
            "project.name",
            "project.version",
            "project.description",
            "project.license",
        ),
        "convert to GGUF and quantize",
    ),
    Phase(
        "verify-gguf",
        "verify_gguf.py",
        ("model", "dataset", "train", "evaluate", "merge", "gguf"),
        ("gguf.fidelity", "evaluation", "project.system_prompt", "project.identity"),
        "compare the GGUF with the merged model",
        gate=True,
    ),
    Phase(
        "modelfile",
        "create_modelfile.py",
        (
            "model",
            "dataset",
            "validate",
            "train",
            "verify-adapter",
            "evaluate",
            "verify-merged",
            "gguf",
            "verify-gguf",
        ),
        ("ollama", "project"),
        "write the Ollama Modelfile and the model's manifest",
        weights=False,
    ),
)
BY_NAME = {phase.name: phase for phase in PHASES}


def upstream(name: str) -> list[Phase]:
    """The phase and everything it needs, in run order."""
    wanted, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current not in wanted:
            wanted.add(current)
            queue.extend(BY_NAME[current].needs)
    return [phase for phase in PHASES if phase.name in wanted]
