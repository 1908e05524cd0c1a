"""The stages dpo and kto: what to answer and what not, on the adapter that sft trained, by trl's trainers.

DPO (Rafailov et al. 2023) learns from pairs, KTO (Ethayarajh et al. 2024) from single answers that are labelled. The
reference is the adapter as this stage found it: its log-probabilities are computed once, before the first step, and
the copy of the adapter that trl makes for them is dropped. Rows are rendered as in every other phase (forge.chat).
"""

from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from forge import chat, files, phase
from forge.errors import BAD_INPUT, ForgeError
from forge.training import arguments
from forge.training.choices import ROUND, Choices
from forge.training.packed import Packed, score_labels_only
from forge.training.supervised import require_fit

FEWEST = 8  # pairs or rows


class Preference:
    """As supervised.Supervised, for `name` dpo or kto."""

    def __init__(self, run: phase.Run, tokenizer, name: str):
        self.name, self.settings, self.tokenizer = name, run.settings, tokenizer
        self.wanted = run.settings["training"]["preference"]
        self.rows_at_once = self.wanted["per_device_train_batch_size"]
        self.accumulation = self.wanted["gradient_accumulation_steps"]
        limit = run.settings["training"]["max_length"]
        file = {"dpo": "preference", "kto": "kto"}[name]
        found = read(run.layout.dataset / f"{file}.jsonl", name)
        self.rows: dict[str, list[dict]] = {"train": [], "validation": []}
        for row in found:
            split = "validation" if held_out(row, self.wanted["heldout_share"]) else "train"
            self.rows[split].append(encode(tokenizer, row, file, limit))
        if len(self.rows["train"]) < FEWEST:
            raise too_few(name, len(self.rows["train"]))
        if name == "kto":
            self.rows = {split: interleaved(rows) for split, rows in self.rows.items()}

    def describe(self) -> str:
        what = "pairs" if self.name == "dpo" else "labelled rows"
        return f"{len(self.rows['train'])} {what}, {len(self.rows['validation'])} kept out"

    def trainer(self, model, choices: Choices, folder: Path, rows_at_once: int, accumulation: int):
        config, kind = {"dpo": (DPOConfig, Pairs), "kto": (KTOConfig, Labelled)}[self.name]
        steps = -(-len(self.rows["train"]) // (rows_at_once * accumulation))
        more = {} if self.name == "dpo" else {"train_sampling_strategy": "sequential"}
        shared = arguments.common(self.settings, choices, folder, rows_at_once, accumulation)
        given = config(
            **{**shared, "save_steps": max(1, min(shared["save_steps"], steps))},
            num_train_epochs=self.wanted["num_train_epochs"],
            learning_rate=self.wanted["learning_rate"],
            beta=self.wanted["beta"],
            precompute_ref_log_probs=True,
            pad_to_multiple_of=ROUND,  # few lengths: the memory of one batch fits the next
            eval_strategy="steps" if self.rows["validation"] else "no",
            eval_steps=max(1, min(self.settings["training"]["eval_steps"], steps)),
            **more,
        )
        validation = self.rows["validation"]
        model.eval()  # the reference is computed without dropout
        score_labels_only()
        trainer = kind(
            model=model,
            args=given,
            train_dataset=Dataset.from_list(self.rows["train"]),
            eval_dataset=Dataset.from_list(validation) if validation else None,
            processing_class=self.tokenizer,
            packing=self.settings["training"]["packing"],
        )
        trainer.model.delete_adapter("ref")  # its log-probabilities are columns of the data now
        return trainer


class Encoded:
    """Rows come as token ids already: trl's own rendering would do without a system prompt for some templates."""

    def __init__(self, *args: object, packing: bool, **kwargs: object):
        self.packing = packing  # before the reference is computed
        super().__init__(*args, **kwargs)

    def packed(self, model):
        return Packed(model) if self.packing else model

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(self.packed(model), inputs)

    def _compute_loss(self, model, inputs, return_outputs):
        return super()._compute_loss(self.packed(model), inputs, return_outputs)


class Pairs(Encoded, DPOTrainer):
    pass


class Labelled(Encoded, KTOTrainer):
    """trl draws the KL term from mismatched answers: each prompt with the answer before it in its batch."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        answers = dataset["completion_ids"]
        size = args.per_device_train_batch_size
        mismatched = []
        for begin in range(0, len(answers), size):
            batch = answers[begin : begin + size]
            mismatched += [batch[-1], *batch[:-1]]
        return dataset.add_column("KL_completion_ids", mismatched)


def read(path: Path, name: str) -> list[dict]:
    if not path.is_file():
        raise too_few(name, 0)
    return files.read_jsonl(path)


def too_few(name: str, count: int) -> ForgeError:
    what = {"dpo": "preference pairs", "kto": "labelled rows"}[name]
    return ForgeError(
        f"training.stages names {name}, but the data has {count} {what} to train on, {FEWEST} are needed",
        f"add a source that has them (scenarios with failure_modes, records), or take {name} out of training.stages",
        BAD_INPUT,
    )


def held_out(row: dict, share: float) -> bool:
    """By the prompt's digest, so that all answers to a prompt stay on one side whatever else there is."""
    return int(files.sha256_json(chat.asked(row["prompt"]))[:8], 16) < share * 2**32


def encode(tokenizer, row: dict, file: str, limit: int) -> dict:
    """`prompt_ids` and the ids of each answer, as trl's collators take them."""
    sides = ("chosen", "rejected") if file == "preference" else ("completion",)
    found: dict = {}
    for side in sides:
        item = chat.encode(tokenizer, [*row["prompt"], *row[side]], last_only=True)
        require_fit(file, row["id"], len(item["input_ids"]), limit)
        start = next(place for place, label in enumerate(item["labels"]) if label != chat.IGNORED)
        end = len(item["labels"]) - next(
            place for place, label in enumerate(reversed(item["labels"])) if label != chat.IGNORED
        )
        found["prompt_ids"] = item["input_ids"][:start]
        found[f"{side}_ids"] = item["input_ids"][start:end]
    if "label" in row:
        found["label"] = bool(row["label"])
    return found


def interleaved(rows: list[dict]) -> list[dict]:
    """Good and bad answers in turn, spread evenly: KTO compares neighbours of a batch."""
    good, bad = ([row for row in rows if row["label"] is label] for label in (True, False))
    placed = [((place + 0.5) / len(side), row) for side in (good, bad) for place, row in enumerate(side)]
    return [row for _, row in sorted(placed, key=lambda item: item[0])]
