"""The run configuration: one pydantic model for the YAML file, Python and the command line.

`RunConfig` is all a fine-tuning run needs, and it is saved inside the model folder. Unknown keys
are refused with the nearest valid one named. `RunConfig.load("run.yaml", ["--train.epochs", "4"])`
reads a file and puts dotted command-line overrides on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_influence.errors import ConfigError, choices
from llm_influence.files import write_text

LARGE_CATALOGUE = 20_000
"""Items up to which training scores all of them after every event; see docs/large_catalogues.md."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(Section):
    """A section that is a YAML file of its own."""

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or start from the defaults) and put dotted overrides on top.

        Args:
            path: The YAML file, or None for the defaults.
            overrides: ``["--train.epochs", "4"]`` or ``["--train.epochs=4"]``.

        Raises:
            ConfigError: The file cannot be read, or a key or value is wrong.
        """
        tree = _read_yaml(Path(path)) if path is not None else {}
        place = str(path) if path is not None else "command line"
        for key, text in _pairs(overrides):
            set_option(tree, key, _value(key, text))
        return cls.of(tree, place)

    @classmethod
    def of(cls, tree: dict[str, Any], place: str) -> Self:
        """Check options that are already read; ``place`` is what messages call their source.

        Raises:
            ConfigError: A key or value is wrong.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _as_config_error(error, place, cls) from error

    def save(self, path: Path) -> None:
        """Write the whole configuration, defaults included, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class SplitConfig(Section):
    """How histories are cut into training, validation and test.

    ``leave_one_out``: a user's last event is tested, the one before it validates; with
    ``held_out`` n, the last n are tested and the n before them validate.
    ``global_time``: events before ``validation_from`` train, those before ``test_from`` validate,
    the rest is tested; both are ISO times with a zone, or quantiles of all event times in (0, 1).
    A user is asked for the ``first`` event after each moment, or for ``all`` of them. Of the
    questions of either kind, those for events with other ``behaviors`` than these are left out.
    """

    kind: Literal["leave_one_out", "global_time"] = "leave_one_out"
    validation_from: str | float = 0.8
    test_from: str | float = 0.9
    min_events: int = Field(3, ge=2, description="users with fewer events only train")
    held_out: int = Field(1, ge=1, description="events of a user tested, and as many validate")
    questions: Literal["first", "all"] = Field("first", description="asked after each moment")
    behaviors: list[str] = Field([], description="only their events are asked; default: all")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> SplitConfig:
        if self.kind == "global_time" and self.held_out != 1:
            raise ValueError("no held_out: a global_time split reads questions instead")
        if self.kind == "leave_one_out" and self.questions != "first":
            raise ValueError("no questions: a leave_one_out split reads held_out instead")
        if self.kind == "leave_one_out" and self.min_events < 2 * self.held_out:
            raise ValueError(
                f"min_events of at least {2 * self.held_out}: {self.held_out} events are tested "
                "and as many validate"
            )
        return self


class DataConfig(Section):
    """Where the log lies and what its columns mean.

    ``source`` is a file (Parquet, CSV, JSONL, RecBole .inter) or the name of a public data set
    (`llm_influence.data.public`). ``columns`` maps the contract's names to the file's own.
    """

    source: str = "movielens_100k"
    items: str | None = None
    users: str | None = None
    columns: dict[str, str] = {}
    item_text: list[str] | None = Field(
        None, description="item columns that make the item's text, in order; default: all text"
    )
    item_title: str | None = Field(None, description="item column shown to people")
    default_behavior: str = "interact"
    timezone: str | None = Field(None, description="zone of times written without one")
    duplicates: Literal["error", "drop", "keep"] = "error"
    split: SplitConfig = SplitConfig()


class RenderingConfig(Section):
    """How a history becomes tokens (see `llm_influence.rendering`)."""

    style: Literal["token", "text"] = "token"
    template: str = Field("fused", description="a shipped template's name, or a YAML file")
    max_events: int = Field(50, ge=1, description="the most recent events that are kept")
    max_tokens: int | None = Field(None, ge=8, description="default: the backbone's context")


ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", "dropout", "targets"),
    "dora": ("rank", "alpha", "dropout", "targets"),
    "rslora": ("rank", "alpha", "dropout", "targets"),
    "adalora": (
        *("rank", "initial_rank", "alpha", "dropout", "targets"),
        *("prune_from", "prune_until", "prune_every", "orthogonality"),
    ),
    "ia3": ("targets",),
    "bottleneck": ("width", "targets"),
    "full": (),
    "frozen": (),
}
"""The options that each kind of adapter reads."""


class AdapterConfig(Section):
    """What is trained inside the backbone; docs/adapters.md says when to use which.

    ``lora``, ``dora``, ``rslora`` train low-rank updates of the ``targets`` matrices; ``adalora``
    starts with ``initial_rank`` and prunes to ``rank`` on average while it trains; ``ia3`` scales
    keys, values and feed-forward activations; ``bottleneck`` adds small networks of ``width``
    units; ``full`` trains the whole backbone; ``frozen`` leaves it as it is and trains the heads
    alone. An option that the kind does not read (`ADAPTER_OPTIONS`) must keep its default.
    """

    kind: Literal["lora", "dora", "rslora", "adalora", "ia3", "bottleneck", "full", "frozen"] = (
        "lora"
    )
    rank: int = Field(16, ge=1, description="of an update; adalora: on average, after pruning")
    initial_rank: int | None = Field(None, ge=2, description="default: 1.5 x rank")
    alpha: float = Field(32.0, gt=0, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the updates")
    targets: str | list[str] | None = Field(
        None,
        description="module names, a regular expression of whole names, or 'all-linear'; "
        "default: the kind's own places",
    )
    width: int = Field(64, ge=1, description="hidden units of a bottleneck")
    prune_from: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    prune_until: float = Field(0.7, gt=0, le=1, description="share of all steps")
    prune_every: float = Field(0.01, gt=0, le=1, description="share of all steps")
    orthogonality: float = Field(0.1, ge=0, description="weight of the penalty in the loss")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> AdapterConfig:
        fields, read = type(self).model_fields, ADAPTER_OPTIONS[self.kind]
        for name in fields.keys() - {"kind", *read}:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"no {name}: an adapter of kind {self.kind!r} does not read it")
        if self.kind == "adalora" and self.first_rank <= self.rank:
            raise ValueError(f"an initial_rank ({self.first_rank}) above rank ({self.rank})")
        if self.prune_from >= self.prune_until:
            raise ValueError(f"prune_from {self.prune_from} before prune_until {self.prune_until}")
        return self

    @property
    def first_rank(self) -> int:
        """Rank that adalora starts with."""
        return self.initial_rank or (3 * self.rank + 1) // 2

    def describe(self) -> str:
        """One line for reports: the kind and the options that it reads."""
        shown = {name: getattr(self, name) for name in ADAPTER_OPTIONS[self.kind]}
        if "initial_rank" in shown:
            shown["initial_rank"] = self.first_rank
        texts = [
            f"{name.replace('_', ' ')} {_plainly(value)}"
            for name, value in shown.items()
            if value is not None
        ]
        return ", ".join([self.kind, *texts])


class ItemHeadConfig(Section):
    """Scores of the next item: ``dot`` or temperature-scaled ``cosine`` with the item vectors.

    ``loss`` is ``full`` cross-entropy over the catalogue, ``sampled`` softmax with logQ correction,
    or ``gbce``; ``auto`` is full up to `LARGE_CATALOGUE` items and sampled above. ``negatives``
    and ``calibration`` (gBCE's t) are read by the losses that draw. docs/large_catalogues.md.
    """

    weight: float = Field(1.0, ge=0)
    score: Literal["cosine", "dot"] = "cosine"
    temperature: float = Field(0.07, gt=0, description="used by cosine; learned from here")
    loss: Literal["auto", "full", "sampled", "gbce"] = "auto"
    negatives: int = Field(1024, ge=1, description="items drawn for a step, on average")
    calibration: float = Field(0.75, ge=0, le=1, description="0: plain BCE, 1: calibrated")
    residual_rank: int | None = Field(
        None, ge=1, description="of the learned residuals; default: full, 32 in a large catalogue"
    )

    def loss_for(self, items: int) -> Literal["full", "sampled", "gbce"]:
        """The loss for a catalogue of this many items."""
        if self.loss != "auto":
            return self.loss
        return "sampled" if items > LARGE_CATALOGUE else "full"

    def residual_width(self, items: int, width: int) -> int:
        """Numbers learned for each of so many items, whose vectors are ``width`` long."""
        wanted = self.residual_rank or (32 if items > LARGE_CATALOGUE else width)
        return min(wanted, width)


class BehaviorHeadConfig(Section):
    """Softmax over the next behaviour."""

    weight: float = Field(0.1, ge=0)


class FeedbackHeadConfig(Section):
    """Feedback on the next event, given its item: a click, a purchase, a like, a rating.

    ``binary``: will the label be at least ``positive_from``? ``ordinal``: which of the labels
    that training has, in their order? ``regression``: the label itself. ``label`` names the
    column of the log that is predicted: ``value``, which later histories show, or ``label``, which
    they never do. docs/heads.md.
    """

    weight: float = Field(0.0, ge=0, description="0: no such head is built")
    kind: Literal["binary", "ordinal", "regression"] = "binary"
    label: Literal["value", "label"] = "value"
    positive_from: float = Field(
        1.0, description="ordinal: log-odds explained are those of a label of at least this"
    )
    behaviors: list[str] = Field(
        [], description="events with these behaviours are asked; default: all that have a label"
    )
    hidden: int = Field(64, ge=1, description="units of the small network")
    dropout: float = Field(0.0, ge=0, lt=1, description="of these units")


RECURRENT = ("gru", "lstm", "recurrence")
"""Backbones that carry a state from token to token instead of attending (docs/recurrent.md)."""


class RecurrentConfig(Section):
    """Sizes of a backbone ``gru``, ``lstm`` or ``recurrence``, whose weights start at random."""

    width: int = Field(128, ge=1, description="numbers of a state")
    layers: int = Field(1, ge=1, description="of gru and lstm, one above the other")
    words: str | None = Field(
        None,
        description="a transformer that reads the items' texts, as model.backbone names one; "
        "default: items have learned vectors alone",
    )


class ModelConfig(Section):
    """The backbone, its adapter and the heads on top.

    A head whose weight is 0 is not trained; the feedback head is then not even built. With
    ``when`` every head also sees how long ago the last event was at the moment of the question.

    ``backbone`` is a packaged asset (``minilm``, ``smollm2-135m``), a local folder or a hub id; or
    ``gru``, ``lstm`` or ``recurrence``, which read ``recurrent`` and are trained whole (``full``).
    """

    backbone: str = "minilm"
    recurrent: RecurrentConfig = RecurrentConfig()
    layers: int | None = Field(None, ge=1, description="keep only the first layers")
    dropout: float | None = Field(
        0.2,
        ge=0,
        lt=1,
        description="of hidden states, none of attention weights; null: as the backbone has it",
    )
    residual_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that an item has its words' vector alone for a step"
    )
    adapter: AdapterConfig = AdapterConfig()
    item_head: ItemHeadConfig = ItemHeadConfig()
    behavior_head: BehaviorHeadConfig = BehaviorHeadConfig()
    feedback_head: FeedbackHeadConfig = FeedbackHeadConfig()
    when: bool = Field(False, description="heads see the gap from the last event to the question")

    @model_validator(mode="after")
    def _has_a_head(self) -> ModelConfig:
        if not any(h.weight for h in (self.item_head, self.behavior_head, self.feedback_head)):
            raise ValueError("a weight above 0 for at least one head")
        return self

    @property
    def feedback(self) -> FeedbackHeadConfig | None:
        """The feedback head's options, None where there is no such head."""
        return self.feedback_head if self.feedback_head.weight else None

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> ModelConfig:
        if self.backbone not in RECURRENT:
            if self.recurrent != RecurrentConfig():
                raise ValueError(f"no recurrent: backbone {self.backbone!r} does not read it")
            return self
        name = f"backbone {self.backbone!r}"
        if self.adapter.kind != "full":
            raise ValueError(
                f"adapter.kind 'full', not {self.adapter.kind!r}: {name} starts at random, and all "
                "of it has to be trained"
            )
        if self.layers is not None:
            raise ValueError(f"no layers: {name} has as many as recurrent.layers says")
        if self.backbone == "recurrence" and self.recurrent.layers > 1:
            raise ValueError(f"recurrent.layers 1: {name} has one gate an event")
        if self.residual_dropout and not self.recurrent.words:
            raise ValueError(
                "residual_dropout 0, or recurrent.words: without words an item has its residual "
                "alone"
            )
        return self


class ScratchConfig(Section):
    """Sizes of a backbone made from nothing (`llm_influence.modeling.scratch`)."""

    vocab_size: int = Field(4000, ge=300, description="pieces, the 256 bytes included")
    layers: int = Field(4, ge=1)
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    context: int = Field(1024, ge=16, description="most tokens of a history")
    seed: int = 0


class PlantedConfig(Document):
    """A log made by a known law (`llm_influence.data.planted`); what makes it easy or hard.

    ``behaviors`` are weights: what an event counts, positive for and negative against the items
    like its own. Distractors count for nothing: a share of all events has a behaviour of weight
    zero, and ``distractor_items`` have no affinity to any item.
    """

    users: int = Field(2000, ge=1)
    items: int = Field(40, ge=2, description="of the clusters")
    min_events: int = Field(8, ge=3, description="of a user; the last one is what came next")
    max_events: int = Field(13, ge=3)
    behaviors: dict[str, float] = {"purchase": 1.0, "click": 0.5, "dismiss": -0.5}
    half_life: float = Field(6 * 3600.0, gt=0, description="in units of the clock")
    clock: Literal["seconds", "steps"] = "seconds"
    clusters: int = Field(5, ge=2, le=12)
    rank: int | None = Field(
        None,
        ge=1,
        description="of the affinity; below clusters these oppose and support each other",
    )
    spread: float = Field(0.0, ge=0, description="how far items lie from their cluster's centre")
    distractor_share: float = Field(0.2, ge=0, lt=1, description="of events")
    distractor_items: int = Field(0, ge=0)
    pair_strength: float = Field(0.0, description="of two events together beyond each alone")
    temperature: float = Field(1.0, gt=0, description="higher: the law is harder to see")
    session_share: float = Field(0.5, ge=0, lt=1, description="of events seconds after the last")
    gap_hours: float = Field(4.0, gt=0, description="median time between sessions")
    gap_spread: float = Field(0.8, ge=0, description="of its logarithm")
    target: Literal["contrast", "item"] = Field(
        "contrast", description="contrast: the best item over the best of another cluster"
    )
    cause_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="of a history's largest influence, from which on one is a cause",
    )
    seed: int = Field(0, ge=0, description="of the law and the users")
    user_seed: int = Field(0, ge=0, description="other users under the same law")

    @model_validator(mode="after")
    def _fits_together(self) -> PlantedConfig:
        if self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} not below min_events")
        if self.items < self.clusters:
            raise ValueError(f"at least one item for each of {self.clusters} clusters")
        if not any(self.behaviors.values()):
            raise ValueError("at least one behaviour whose weight is not zero")
        if "impression" in self.behaviors:
            raise ValueError("another name than 'impression', which is the distractors'")
        return self


class AugmentationConfig(Section):
    """Windows of training shown changed; docs/learning.md says how and what each is worth.

    A ``share`` of the windows is changed, each by one of the kinds that are on, drawn evenly: cut
    to a stretch (``crop``), with events hidden from attention (``mask``), with a stretch put in
    another order (``reorder``), or rendered by another of ``templates``. The numbers are shares of
    a window's events; 0 is off. The two views of ``train.contrastive`` are always changed.
    """

    share: float = Field(0.5, ge=0, le=1, description="of the windows that are shown changed")
    crop: float = Field(0.0, ge=0, lt=1, description="share of the events that is cut off")
    mask: float = Field(0.0, ge=0, lt=1, description="share of the events that is hidden")
    reorder: float = Field(0.0, ge=0, le=1, description="share of the events that is shuffled")
    templates: list[str] = Field([], description="other templates that say the same fields")

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds that are on."""
        return [kind for kind in ("crop", "mask", "reorder", "templates") if getattr(self, kind)]


class ContrastiveConfig(Section):
    """Two views of a window told from the views of others (CL4SRec, arXiv:2010.14395)."""

    weight: float = Field(0.0, ge=0, description="in the loss; 0: off")
    temperature: float = Field(0.1, gt=0, description="cosines are divided by it")


class AdversarialConfig(Section):
    """Training on input vectors moved to where the loss grows (FGM, arXiv:1605.07725)."""

    epsilon: float = Field(
        0.0, ge=0, description="length of the move, over all vectors of a window; 0: off"
    )
    weight: float = Field(1.0, gt=0, description="of the loss there, beside the usual one")


class TrainConfig(Section):
    """Fine-tuning. ``batch_size`` counts histories over all processes and accumulation steps."""

    epochs: float = Field(5.0, gt=0)
    batch_size: int = Field(32, ge=1)
    accumulation: int = Field(1, ge=1, description="micro-batches a step")
    learning_rate: float = Field(1e-3, gt=0)
    item_learning_rate: float = Field(1e-3, gt=0, description="of the learned item residuals")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    event_dropout: float = Field(
        0.0, ge=0, le=1, description="highest chance that an event is left out of a history"
    )
    event_dropout_share: float = Field(
        0.5, ge=0, le=1, description="share of the histories that have events left out"
    )
    augmentation: AugmentationConfig = AugmentationConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the chip computes it, else fp32"
    )
    validations_per_epoch: int = Field(
        1, ge=1, description="evenly spaced, the last at the epoch's end"
    )
    patience: int = Field(3, ge=1, description="validations without a better chosen metric")
    seed: int = 0
    report_to: list[str] = []

    @model_validator(mode="after")
    def _views_differ(self) -> TrainConfig:
        if self.contrastive.weight and not self.augmentation.kinds:
            raise ValueError(
                "a kind of train.augmentation (crop, mask, reorder or templates): the two views of "
                "train.contrastive would be the same"
            )
        return self


class PretrainingConfig(Section):
    """Language modelling on the rendered log before fine-tuning; reads no labels.

    ``masked`` hides a share of the tokens and predicts them (encoders); ``causal`` predicts every
    token from those before it (decoders, and encoders that read one token an event). What is
    learned is what fine-tuning goes on with: adapter, unit vectors, item head (style ``token``).
    """

    epochs: float = Field(0.0, ge=0, description="passes over the log; 0: off")
    objective: Literal["masked", "causal"] = "masked"
    mask_share: float = Field(0.15, gt=0, lt=1, description="of the tokens; masked alone")
    learning_rate: float = Field(1e-3, gt=0)


# fmt: off
Choice = Literal[
    "auto", "ndcg", "hr", "mrr", "auc", "gauc", "log_loss", "brier", "rmse", "mae",
    "accuracy", "macro_f1",
]
# fmt: on


class PseudoLabelsConfig(Section):
    """Confident predictions of the feedback head become labels of events that have none.

    In each of the ``rounds`` a model is trained, and its predictions on training's unlabelled
    events that are at least ``threshold`` sure, either way, are labels of the next one (Lee 2013).
    """

    rounds: int = Field(0, ge=0, description="models trained before the last one; 0: off")
    threshold: float = Field(0.9, gt=0.5, lt=1, description="probability of the likelier answer")
    weight: float = Field(0.5, gt=0, description="of such a label, beside 1 of a real one")


class EvaluationConfig(Section):
    """How predictions are measured; printed beside every number.

    ``choose_by`` is the metric of validation that chooses the epoch. ``auto`` takes the main
    metric of the first head that is trained: NDCG of items, then AUC of feedback (RMSE of a
    regression), then accuracy of behaviours. ``log_loss`` is that of feedback.
    """

    exclude_seen: bool = Field(True, description="items of the history are no candidates")
    cutoff: int = Field(10, ge=1, description="K of HR@K and NDCG@K")
    batch_size: int = Field(64, ge=1)
    choose_by: Choice = "auto"


class UpdateConfig(Section):
    """A warm update of a finished run: what is new, and how much of the old is replayed.

    ``since`` is the first moment of the new period: an ISO time with a zone, or a quantile of the
    event times in (0, 1). Read by `llm-influence update` alone; docs/warm_update.md.
    """

    since: str | float | None = Field(
        None, description="default: the second after the last event of the run's own log"
    )
    replay: float = Field(
        0.5, ge=0, lt=1, description="share of the windows trained on that are old; 0: none"
    )


class RunConfig(Document):
    """Everything one fine-tuning run needs; written beside the model it made."""

    output: str = "runs/run"
    data: DataConfig = DataConfig()
    rendering: RenderingConfig = RenderingConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    update: UpdateConfig = UpdateConfig()

    @model_validator(mode="after")
    def _has_whom_to_ask(self) -> RunConfig:
        feedback = self.model.feedback
        if self.pseudo_labels.rounds and (feedback is None or feedback.kind != "binary"):
            raise ValueError(
                "a feedback head of kind 'binary' (model.feedback_head) for pseudo_labels.rounds"
            )
        if self.pseudo_labels.rounds and self.model.adapter.kind == "adalora":
            raise ValueError(
                "another adapter than adalora for pseudo_labels.rounds: what it has pruned cannot "
                "be grown again for the next round"
            )
        return self


class SearchedOption(Section):
    """The values that one option may take: from ``low`` to ``high``, or one of ``choices``.

    A range is of whole numbers where both its ends are written as whole numbers. A choice is
    anything that YAML can say, a whole section included.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="draw the logarithm evenly: for rates and sizes")
    choices: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> SearchedOption:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices, or low and high, not both")
        elif self.low is None or self.high is None:
            raise ValueError("low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low ({self.low}) below high ({self.high})")
        elif self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) above 0 for log")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Both ends of a range; nothing of choices may ask for them."""
        if self.low is None or self.high is None:
            raise TypeError("choices have no ends")
        return self.low, self.high

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class PrunerConfig(Section):
    """When a trial that does badly is ended early.

    ``median``: at every validation, a trial whose best one so far is below the median of what
    finished trials had at the same validation ends (Golovin et al. 2017, Google Vizier).
    """

    kind: Literal["median", "none"] = "median"
    startup_trials: int = Field(5, ge=1, description="finished trials before any is ended early")
    warmup_validations: int = Field(1, ge=0, description="of a trial, at which it never ends")


class SearchConfig(Document):
    """A search for good options on validation (`llm_influence.training.search`).

    ``base`` is a run's YAML file, or its options themselves; ``space`` maps dotted options of it
    to the values they may take.
    """

    base: str | dict[str, Any]
    output: str = "runs/search"
    space: dict[str, SearchedOption] = Field(min_length=1)
    trials: int = Field(30, ge=1, description="in all, those of earlier starts included")
    seconds: float | None = Field(
        None, gt=0, description="no trial begins when the trials took so long in all"
    )
    startup_trials: int = Field(8, ge=1, description="drawn at random before TPE draws")
    pruner: PrunerConfig = PrunerConfig()
    seed: int = 0

    def base_run(self) -> RunConfig:
        """The run that trials change.

        Raises:
            ConfigError: The file cannot be read, or an option is wrong.
        """
        if isinstance(self.base, str):
            return RunConfig.load(self.base)
        return RunConfig.of(self.base, "base")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            error.strerror or "cannot be read",
            where=str(path),
            expected="a readable YAML file",
            fix="check the path",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"not YAML ({error})", where=str(path), expected="YAML", fix="correct the syntax"
        ) from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(
            f"the top level is a {type(tree).__name__}",
            where=str(path),
            expected="a mapping of sections",
            fix="start from a file in configs/",
        )
    return tree or {}


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--a.b 1`` and ``--a.b=1`` into (dotted key, text) pairs."""
    pairs, waiting = [], list(overrides)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (equals or waiting):
            raise ConfigError(
                f"cannot read {word!r}",
                where="command line",
                expected="--section.option value",
                fix="give every option a value, as in --train.epochs 4",
            )
        pairs.append((key, text if equals else waiting.pop(0)))
    return pairs


def _value(key: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"cannot read {text!r}",
            where=f"--{key}",
            expected="a value as YAML writes it: 4, 1e-3, true, [wandb, tensorboard]",
            fix="close every bracket and quote, and quote the whole value in the shell",
        ) from error


def set_option(tree: dict[str, Any], key: str, value: object) -> None:
    """Put a value at a dotted key of a tree of sections; missing sections are made.

    Raises:
        ConfigError: A part of the key before the last is a value, not a section.
    """
    *sections, option = key.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ConfigError(
                f"{section!r} is a value, not a section",
                where=f"--{key}",
                expected="section.option",
                fix="write the option's full dotted name",
            )
        tree = branch
    tree[option] = value


def _as_config_error(
    error: ValidationError, place: str, root: type[BaseModel] = RunConfig
) -> ConfigError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields(root, path[:-1])
        return ConfigError(
            f"unknown option {dotted!r}",
            where=place,
            expected=choices(known, path[-1]),
            fix="correct or remove the option",
        )
    return ConfigError(
        f"{dotted} is {first.get('input')!r}",
        where=place,
        expected=_lower_first(first["msg"].removeprefix("Value error, ")),
        fix=f"correct {dotted}",
    )


def _plainly(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _fields(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    section: Any = root
    for part in path:
        if get_origin(section) is dict:  # its keys are free
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
