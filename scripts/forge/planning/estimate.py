"""What a config needs of a machine: memory of training by a replayed step, of the other phases by their shapes.

`Estimator` predicts; `forge.planning.resolving` asks it what fits, `plan` sets everything beside what is there. A step
is replayed with one layer and with two: what a layer adds is the same for each (within 0.4% where layers alternate).
"""

import copy
import json
import math
import os
from functools import cached_property
from pathlib import Path

from forge import capacity, models
from forge.config import Config
from forge.planning import needs, rows, source
from forge.planning.batch import Batch
from forge.planning.needs import Need
from forge.planning.phases import Plan, Planner
from forge.training.choices import Choices
from forge.weights import hollow

FEW = 1  # layers of the smaller of the two models that are replayed


class Estimator:
    """Predictions for one base and one data set. `folder` holds the base's config.json, `tokenizer_bytes` are those of
    its tokenizer.json; `dataset` None, or without rows: every row is taken to be as long as `limit`."""

    def __init__(self, folder: Path, tokenizer_bytes: int, dataset: Path | None, limit: int):
        self.folder, self.tokenizer_bytes = folder, tokenizer_bytes
        self.dataset, self.limit = dataset, limit
        self.config = hollow.config_of(folder)
        self.known: dict[tuple, int] = {}

    @classmethod
    def of(cls, base: Path, dataset: Path | None, limit: int) -> "Estimator":
        """For a base that is here: `base` its folder."""
        tokenizer = base / "tokenizer.json"
        return cls(base, tokenizer.stat().st_size if tokenizer.is_file() else 0, dataset, limit)

    def with_limit(self, limit: int) -> "Estimator":
        """The same with other rows, where rows are not known; what was replayed is kept."""
        other = copy.copy(self)
        other.limit = limit
        return other

    @cached_property
    def text(self):
        """The config of the language model: a multimodal one has several."""
        return self.config.get_text_config()

    @cached_property
    def model(self):
        """The base on the meta device."""
        return hollow.causal_lm(self.config, "bfloat16")

    @cached_property
    def weights(self) -> hollow.Weights:
        return hollow.count(self.model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by its name, tied ones once."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    @cached_property
    def statistics(self) -> dict:
        """statistics.json of the data set; empty where there is none."""
        path = self.dataset / "statistics.json" if self.dataset else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}

    @cached_property
    def tokenizer(self):
        """The base's tokenizer, for the rows' lengths; None without a data set."""
        if not self.statistics:
            return None
        return models.tokenizer(self.folder)

    def adapter(self, lora: dict) -> int:
        """Weights of the adapter: peft's own, on the meta device."""
        key = ("adapter", json.dumps(lora))
        if key not in self.known:
            self.known[key] = hollow.trained(hollow.adapted(hollow.causal_lm(self.config, "bfloat16"), lora))
        return self.known[key]

    def batches(self, settings: dict) -> list[Batch]:
        return rows.worst(settings, self.dataset, self.tokenizer, self.limit)

    def tokens(self, settings: dict) -> dict[str, int | None]:
        """About how many tokens the rows of each stage have; None where they are not known."""
        stages = settings["training"]["stages"]
        if not self.statistics:
            return dict.fromkeys(stages)
        return {stage: rows.tokens(self.dataset, stage, self.tokenizer) for stage in stages}

    def step(self, settings: dict, choices: Choices, batch: Batch, accumulated: bool) -> int:
        """Bytes that a step holds at most, beside weights and optimizer."""
        from forge.planning import step

        how = (choices.device, choices.dtype, choices.four_bit, choices.unpack, choices.attention)
        key = ("step", *how, choices.gradient_checkpointing, json.dumps(settings["lora"]), batch, accumulated)

        def replayed(config) -> int:
            return step.Replay.of(config, settings["lora"], choices).peak(batch, accumulated)

        try:
            return self.by_layers(key, replayed)
        except Exception:  # an architecture that looks at values, as mixtures of experts do: fake tensors have none
            self.known[key] = needs.activations(self.text, batch, choices)
            return self.known[key]

    def by_layers(self, key: tuple, measured) -> int:
        """`measured` of a model of all layers, from that of one and of two."""
        if key not in self.known:
            layers = self.text.num_hidden_layers
            small = measured(shortened(self.config, min(FEW, layers)))
            more = measured(shortened(self.config, FEW + 1)) - small if layers > FEW else 0
            self.known[key] = small + max(0, layers - FEW) * more
        return self.known[key]

    def held(self, settings: dict, choices: Choices) -> int:
        """Bytes of the base alone, as training holds it."""
        return needs.held(self.weights, choices, settings["quantization"]["bnb_4bit_use_double_quant"])

    def train(self, settings: dict, choices: Choices) -> Need:
        """`settings` of the phase train."""
        accumulation = settings["training"]["gradient_accumulation_steps"]
        batches = self.batches(settings)
        largest = max(self.step(settings, choices, batch, accumulation > 1) for batch in batches)
        one_dnn = choices.device == "cpu" and choices.dtype != "float32"  # MKL keeps no kernels
        products = min(kernels_kept(), needs.kernels(batches, self.steps(settings))) if one_dnn else 0
        adapter = self.adapter(settings["lora"])
        return needs.train(self.weights, adapter, self.tokenizer_bytes, choices, settings, largest, products)

    def steps(self, settings: dict) -> int:
        """Batches of the stage sft; a large number where the rows are not known."""
        training = settings["training"]
        count = self.statistics.get("rows", {}).get("train", 1_000_000)
        return math.ceil(count / training["per_device_train_batch_size"] * training["num_train_epochs"])


def plan(configuration: Config) -> Plan:
    """What the config needs of this machine. Raises ForgeError (7) when the base's config.json cannot be had."""
    base = source.find(configuration)  # first: models.prepare switches the Hub off
    models.prepare()
    values, dataset = configuration.values, configuration.layout.dataset
    limit = min(values.data.max_tokens, values.training.max_length)
    estimator = Estimator(base.folder, base.tokenizer, dataset, limit)
    return Planner(configuration, base, estimator, capacity.look()).plan()


def shortened(config, layers: int):
    """The config with only the first layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def kernels_kept() -> int:
    """Products that oneDNN keeps a kernel for: 1,024 unless it is told otherwise."""
    return int(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024"))
