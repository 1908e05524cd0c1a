"""The stage sft: the loss on what the assistant says, by trl's SFTTrainer."""

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from torch.nn import functional
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from forge import chat, files, phase
from forge.errors import BAD_INPUT, ForgeError
from forge.training import arguments, batches, ranks
from forge.training.choices import ROUND, Choices


class Supervised:
    """`rows`: what is trained and what is measured; `trainer(...)` builds the trainer for one attempt."""

    def __init__(self, run: phase.Run, tokenizer):
        self.settings, self.tokenizer = run.settings, tokenizer
        training = run.settings["training"]
        self.rows_at_once = training["per_device_train_batch_size"]
        self.accumulation = training["gradient_accumulation_steps"]
        self.rows = {split: list(encoded(run, tokenizer, split)) for split in ("train", "validation")}

    def describe(self) -> str:
        tokens = sum(len(row["input_ids"]) for row in self.rows["train"])
        return f"{len(self.rows['train'])} rows, {tokens} tokens an epoch"

    def trainer(self, model, choices: Choices, folder: Path, rows_at_once: int, accumulation: int) -> "Trainer":
        training = self.settings["training"]
        rows = self.rows["train"]
        blanks = -len(rows) % (rows_at_once * ranks.world()) if ranks.launched() else 0
        given = SFTConfig(
            **arguments.common(self.settings, choices, folder, rows_at_once, accumulation),
            num_train_epochs=training["num_train_epochs"],
            learning_rate=training["learning_rate"],
            packing=False,
            eval_strategy="steps",
            eval_steps=training["eval_steps"],
            load_best_model_at_end=training["keep"] == "best",
            metric_for_best_model="eval_loss",
            greater_is_better=False,
        )
        return Trainer(
            model=model,
            args=given,
            train_dataset=Dataset.from_list(rows + blanks * [self.blank()]),
            eval_dataset=Dataset.from_list(self.rows["validation"]),
            processing_class=self.tokenizer,
            data_collator=Collator(pad_token_id=padding_of(self.tokenizer), padding_free=training["packing"]),
            grouped=training["group_by_length"],
            blanks=blanks,
        )

    def blank(self) -> dict:
        """A row without loss: where the last rows do not go round, accelerate would train the first ones twice."""
        return {"input_ids": [padding_of(self.tokenizer)], "labels": [chat.IGNORED]}


class Collator(DataCollatorForLanguageModeling):
    """trl's, but for a last row without loss that brings a packed batch to a multiple of ROUND tokens: 2% more of them
    for a sixteenth of the lengths that kernels are made for."""

    def torch_call(self, examples: list[dict]) -> dict:
        missing = -sum(len(row["input_ids"]) for row in examples) % ROUND
        if self.padding_free and missing:
            blank = {"input_ids": [self.pad_token_id] * missing, "labels": [chat.IGNORED] * missing}
            examples = [*({key: row[key] for key in blank} for row in examples), blank]
        return super().torch_call(examples)


class Trainer(SFTTrainer):
    """trl's trainer with an order of rows that a resumed run finds again, and, on a CPU, logits only where a loss is.

    trl projects every position of a row to the vocabulary on a CPU (on a GPU it skips those without loss): at 49,152
    tokens that is a fifth of the forward pass.
    """

    def __init__(self, *args: object, grouped: bool, blanks: int = 0, **kwargs: object):
        self.grouped, self.blanks = grouped, blanks
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        at_once = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * ranks.world()
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        lengths = lengths[: len(lengths) - self.blanks]
        return batches.Order(lengths, at_once if self.grouped else None, self.args.seed, self.blanks)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs or self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        targets = inputs.pop("labels")[:, 1:]
        wanted = (targets != chat.IGNORED).any(dim=0).nonzero().flatten()
        logits = model(**inputs, use_cache=False, logits_to_keep=wanted).logits
        total = functional.cross_entropy(logits.float().flatten(0, 1), targets[:, wanted].flatten(), reduction="sum")
        if num_items_in_batch is None:
            return total / (targets != chat.IGNORED).sum().clamp(min=1)
        # The count is that of all processes, and their gradients are averaged.
        return total * ranks.world() / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def _track_num_input_tokens(self, inputs):
        """Every token of a packed row counts, none of a row that only fills up. transformers leaves out all that equal
        the padding token: in the starter's base that is the end token, 5% of all."""
        if "cu_seq_lens_q" in inputs:
            filled = inputs["input_ids"][0] != self.data_collator.pad_token_id
            lengths = inputs["cu_seq_lens_q"].diff().tolist()
            real = torch.cat([row.any().expand(len(row)) for row in filled.split(lengths)])
            inputs = {**inputs, "attention_mask": real[None]}
        super()._track_num_input_tokens(inputs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone; transformers' own also asks for the logits of every position."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None


def padding_of(tokenizer) -> int:
    """What rows are padded with: never trained, and never looked at, so a base without one pads with its end token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def encoded(run: phase.Run, tokenizer, split: str) -> Iterator[dict]:
    """Rows of a split as input_ids and labels. Raises ForgeError (2) for a row that does not fit."""
    limit = run.settings["training"]["max_length"]
    for row in files.read_jsonl(run.layout.dataset / f"{split}.jsonl"):
        item = chat.encode_row(tokenizer, row)
        require_fit(split, row["id"], len(item["input_ids"]), limit)
        yield item


def require_fit(split: str, name: str, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ForgeError(
            f"{split} row {name} has {tokens} tokens, training.max_length is {limit}",
            "raise training.max_length or lower data.max_tokens",
            BAD_INPUT,
        )
