"""Fine-tuning, and what may come before or after it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.document import Section


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


class PropensityConfig(Section):
    """Labels weighted by the inverse chance that their item was seen (docs/learning.md).

    ``popularity`` takes the item's share of training's events, relative to the largest, to
    ``power`` 0.5 (Saito et al. 2020, arXiv:1909.03601); ``exposure`` takes ``column`` of the item
    table, how often each item was shown or its chance of it, relative to the largest. Weights are
    clipped and divided by their mean over training's labels (Schnabel et al. 2016,
    arXiv:1602.05352).
    """

    source: Literal["none", "popularity", "exposure"] = "none"
    column: str | None = Field(None, description="of the item table, a number; exposure alone")
    power: float | None = Field(
        None, gt=0, description="of the propensity; default: 0.5 of popularity, 1 of exposure"
    )
    clip: float = Field(0.05, gt=0, le=1, description="smaller propensities count as this")

    @model_validator(mode="after")
    def _names_a_column(self) -> PropensityConfig:
        if (self.source == "exposure") != (self.column is not None):
            raise ValueError("column, the item table's column of exposures, with source 'exposure'")
        return self


class FairnessConfig(Section):
    """Predictions kept the same where a user's feature alone is another; docs/analysis_audit.md."""

    features: list[str] = Field([], description="of users, as the template says them")
    weight: float = Field(0.0, ge=0, description="of the penalty in the loss; 0: off")

    @model_validator(mode="after")
    def _names_features(self) -> FairnessConfig:
        if self.weight and not self.features:
            raise ValueError("at least one of features, for a weight above 0")
        return self


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
    propensity: PropensityConfig = PropensityConfig()
    fairness: FairnessConfig = FairnessConfig()
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the chip computes it, else fp32"
    )
    validations_per_epoch: int = Field(
        1, ge=1, description="evenly spaced, the last at the epoch's end"
    )
    patience: int = Field(3, ge=1, description="validations without a better chosen metric")
    seed: int = 0
    report_to: list[str] = Field([])

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


class PseudoLabelsConfig(Section):
    """Confident predictions of the feedback head become labels of events that have none.

    In each of the ``rounds`` a model is trained, and its predictions on training's unlabelled
    events that are at least ``threshold`` sure, either way, are labels of the next one (Lee 2013).
    """

    rounds: int = Field(0, ge=0, description="models trained before the last one; 0: off")
    threshold: float = Field(0.9, gt=0.5, lt=1, description="probability of the likelier answer")
    weight: float = Field(0.5, gt=0, description="of such a label, beside 1 of a real one")


Choice = Literal[
    "auto",
    "ndcg",
    "hr",
    "mrr",
    "auc",
    "gauc",
    "log_loss",
    "brier",
    "rmse",
    "mae",
    "accuracy",
    "macro_f1",
]


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
    """A continual fine-tuning of a finished run: what is new, and how much of the old is replayed.

    ``since`` is the first moment of the new period: an ISO time with a zone, or a quantile of the
    event times in (0, 1). Read by `llm-influence update` alone; docs/warm_update.md.
    """

    since: str | float | None = Field(
        None, description="default: the second after the last event of the run's own log"
    )
    replay: float = Field(
        0.5, ge=0, lt=1, description="share of the windows trained on that are old; 0: none"
    )
