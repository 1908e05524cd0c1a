"""Log-probabilities of whole answers, many at once: how likely a model holds each of several answers to one question.

A question that has several answers is computed once, the answers after it side by side: of the starter's pairs that
leaves out a third of the tokens. Rows are padded on the right and no mask is needed for that: a causal model's figure
for a token does not depend on what comes after it. Rows of like length share a batch, and logits are asked for from the
earliest answer of the batch on.
"""

import inspect
from dataclasses import dataclass

import numpy as np

from forge import chat

TOKENS_AT_ONCE = 2048  # of a batch, padding included
LOGIT_BYTES = 400_000_000  # float32 logits of a batch: 2,000 positions of a 49,152-word vocabulary
PLAIN = {"full_attention", "sliding_attention"}  # kinds of layers that look at what a mask lets them see


@dataclass
class Bundle:
    """A question's tokens and those of one answer or several; `rows`: whose answers they are."""

    question: list[int]
    answers: list[list[int]]
    rows: list[int]

    @property
    def ids(self) -> list[int]:
        return self.question + [token for answer in self.answers for token in answer]

    def __len__(self) -> int:
        return len(self.question) + sum(map(len, self.answers))


def encode(tokenizer, prompt: list[dict], answer: str) -> dict:
    """`input_ids` of a conversation with its answer, and `start`: where the answer's tokens begin.

    The end token is part of the answer, what the template writes after it is not: no model is asked to say that.
    """
    row = chat.encode_row(tokenizer, {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
    counted = np.flatnonzero(np.asarray(row["labels"]) != chat.IGNORED)
    return {"input_ids": row["input_ids"][: counted[-1] + 1], "start": int(counted[0])}


def bundled(rows: list[dict], window: int, vocabulary: int) -> list[Bundle]:
    """Rows of the same question together, within TOKENS_AT_ONCE and LOGIT_BYTES; those longer than `window`, alone."""
    found: list[Bundle] = []
    known: dict[tuple[int, ...], Bundle] = {}
    for index, row in enumerate(rows):
        question, answer = row["input_ids"][: row["start"]], row["input_ids"][row["start"] :]
        bundle = known.get(tuple(question))
        long = len(row["input_ids"]) > window
        size = len(bundle or question) + len(answer)
        too_many = size > TOKENS_AT_ONCE or 4 * (size - len(question) + 1) * vocabulary > LOGIT_BYTES
        if bundle is None or long or too_many:
            bundle = Bundle(question, [], [])
            found.append(bundle)
            if not long:
                known[tuple(question)] = bundle
        bundle.answers.append(answer)
        bundle.rows.append(index)
    return found


def batches(bundles: list[Bundle], vocabulary: int) -> list[list[Bundle]]:
    """Those of like length together, within TOKENS_AT_ONCE and LOGIT_BYTES (one at least)."""
    found: list[list[Bundle]] = []
    batch: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda bundle: (len(bundle), len(bundle.question))):
        wider = [*batch, bundle]
        kept = len(bundle) - min(len(one.question) for one in wider) + 1
        too_many = len(wider) * len(bundle) > TOKENS_AT_ONCE or 4 * len(wider) * kept * vocabulary > LOGIT_BYTES
        if batch and too_many:
            found.append(batch)
            wider = [bundle]
        batch = wider
    return [*found, batch] if batch else found


def log_probabilities(model, rows: list[dict], say=None) -> list[float]:
    """Natural logarithm of the probability of each row's answer: the sum over its tokens, in nats.

    `rows` as `encode` gives them; `say(done, of)` is told after every batch. NaN where the model gives NaN.
    """
    import torch

    found, scored = [float("nan")] * len(rows), 0
    vocabulary = model.get_output_embeddings().weight.shape[0]
    bundles = bundled(rows, window(model), vocabulary)
    single = [bundle for bundle in bundles if len(bundle.answers) == 1]  # by the model's own mask, windows and all
    several = [bundle for bundle in bundles if len(bundle.answers) > 1]
    for batch in batches(single, vocabulary) + batches(several, vocabulary):
        first = min(len(bundle.question) for bundle in batch) - 1
        with torch.inference_mode():
            logits = _logits(model, batch, first)
            for line, bundle in zip(logits, batch, strict=True):
                for index, value in zip(bundle.rows, _of_answers(line, bundle, first), strict=True):
                    found[index] = value
        scored += sum(len(bundle.rows) for bundle in batch)
        if say:
            say(scored, len(rows))
    return found


def window(model) -> int:
    """Tokens of a row up to which every layer sees all of it by a mask of ours; 0 where that is not known."""
    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or PLAIN) <= PLAIN or not _takes(model, "position_ids"):
        return 0
    return getattr(config, "sliding_window", None) or 1 << 30


def _takes(model, name: str) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(inner.forward).parameters


def _of_answers(logits, bundle: Bundle, first: int) -> list[float]:
    """Sum over the tokens of each answer; `logits` begin with those for the token at `first` + 1."""
    import torch

    found, begin = [], len(bundle.question)
    for answer in bundle.answers:
        end = begin + len(answer)
        places = torch.tensor([len(bundle.question) - 1, *range(begin, end - 1)], device=logits.device) - first
        target = torch.tensor(answer, device=logits.device)
        found.append(-float(torch.nn.functional.cross_entropy(logits[places].float(), target, reduction="sum")))
        begin = end
    return found


def _logits(model, batch: list[Bundle], first: int):
    """Logits from position `first` on; of all, where a model cannot leave any out."""
    import torch

    width = max(map(len, batch))
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    for line, bundle in enumerate(batch):
        ids[line, : len(bundle)] = torch.tensor(bundle.ids)
    given = {"input_ids": ids}
    if len(batch[0].answers) > 1:
        given |= side_by_side(batch, width, model.dtype)
    if _takes(model, "logits_to_keep"):
        given["logits_to_keep"] = width - first
    given = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in given.items()}
    return model(**given, use_cache=False).logits[:, first - width :]


def side_by_side(batch: list[Bundle], width: int, dtype) -> dict:
    """`position_ids` [rows, width], which go on from the question for each answer, and an `attention_mask` [rows, 1,
    width, width], added to the scores: an answer sees its question and itself."""
    import torch

    places = torch.zeros((len(batch), width), dtype=torch.long)
    parts = torch.full((len(batch), width), -1)
    for line, bundle in enumerate(batch):
        begin = len(bundle.question)
        places[line, :begin], parts[line, :begin] = torch.arange(begin), 0
        for number, answer in enumerate(bundle.answers, 1):
            end = begin + len(answer)
            places[line, begin:end] = torch.arange(len(answer)) + len(bundle.question)
            parts[line, begin:end] = number
            begin = end
    seen = (parts[:, :, None] == parts[:, None, :]) | (parts == 0)[:, None, :]
    seen &= torch.ones((width, width), dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {"position_ids": places, "attention_mask": mask[:, None]}
