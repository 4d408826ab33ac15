"""Sections on fine-tuning, on what precedes and follows it, and on evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.document import Section

FeedbackMetric = Literal["auc", "gauc", "log_loss", "brier", "rmse", "mae"]
ChosenMetric = Literal["auto", "ndcg", "hr", "mrr", FeedbackMetric, "accuracy", "macro_f1"]


class PropensityConfig(Section):
    """Labels weighted by the inverse probability that their item was shown to the user.

    Weights are clipped and divided by their mean over the training labels (Schnabel et al. 2016,
    arXiv:1602.05352).
    """

    source: Literal["none", "popularity", "exposure"] = Field(
        "none",
        description="none: all labels weigh 1. popularity: the propensity is the item's share of "
        "the training events, relative to the largest (Saito et al. 2020, arXiv:1909.03601). "
        "exposure: it is a column of the item table, relative to its largest value.",
    )
    column: str | None = Field(
        None,
        description="Column of the item table with the number or probability of exposures; for "
        "source exposure alone. null: none.",
    )
    power: float | None = Field(
        None,
        gt=0,
        description="Exponent of the propensity. null: 0.5 (popularity) or 1 (exposure).",
    )
    clip: float = Field(
        0.05, gt=0, le=1, description="Smallest propensity; smaller ones count as this."
    )

    @model_validator(mode="after")
    def _names_a_column(self) -> PropensityConfig:
        if (self.source == "exposure") != (self.column is not None):
            raise ValueError("column, the item table's column of exposures, with source 'exposure'")
        return self


class FairnessConfig(Section):
    """A penalty on predictions that change when only a feature of the user changes."""

    features: list[str] = Field(
        [], description="User features that must not matter, named as in the template. []: none."
    )
    weight: float = Field(0.0, ge=0, description="Weight of the penalty in the loss. 0: off.")

    @model_validator(mode="after")
    def _names_features(self) -> FairnessConfig:
        if self.weight and not self.features:
            raise ValueError("at least one of features, for a weight above 0")
        return self


class AugmentationConfig(Section):
    """Changed copies of training windows (stretches of one history).

    Each changed window gets one of the kinds that are on, drawn evenly. Both views of
    ``train.contrastive`` are always changed.
    """

    share: float = Field(0.5, ge=0, le=1, description="Share of the windows that are changed.")
    crop: float = Field(
        0.0, ge=0, lt=1, description="Share of a window's events that is cut off. 0: off."
    )
    mask: float = Field(
        0.0, ge=0, lt=1, description="Share of a window's events hidden from attention. 0: off."
    )
    reorder: float = Field(
        0.0, ge=0, le=1, description="Share of a window's events, in one stretch, shuffled. 0: off."
    )
    templates: list[str] = Field(
        [], description="Other templates with the same fields, one for a changed window. []: off."
    )

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds that are on."""
        return [kind for kind in ("crop", "mask", "reorder", "templates") if getattr(self, kind)]


class ContrastiveConfig(Section):
    """A contrastive loss between two changed views of a window (CL4SRec, arXiv:2010.14395)."""

    weight: float = Field(0.0, ge=0, description="Weight of the contrastive loss. 0: off.")
    temperature: float = Field(
        0.1, gt=0, description="Temperature by which the cosines of two views are divided."
    )


class AdversarialConfig(Section):
    """Training on input vectors moved to where the loss grows (FGM, arXiv:1605.07725)."""

    epsilon: float = Field(
        0.0, ge=0, description="Euclidean length of the move, over all vectors of a window. 0: off."
    )
    weight: float = Field(
        1.0, gt=0, description="Weight of the loss at the moved vectors, beside the usual loss."
    )


class TrainConfig(Section):
    """Fine-tuning."""

    epochs: float = Field(5.0, gt=0, description="Number of epochs; a fraction is allowed.")
    examples: Literal["causal", "prefixes"] = Field(
        "causal",
        description="causal: one evaluation of a window has a loss after every event. prefixes: "
        "every event is the single label of an example, which holds the events before it; an epoch "
        "takes several times as long.",
    )
    batch_size: int = Field(
        32, ge=1, description="Histories in an optimizer step, over processes and micro-batches."
    )
    accumulation: int = Field(
        1, ge=1, description="Number of micro-batches in a step; more need less memory."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate, after the warmup.")
    item_learning_rate: float = Field(
        1e-3, gt=0, description="Highest learning rate of the learned item residuals."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled L2 penalty (AdamW) of weight matrices."
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises from 0."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="Course of the learning rate after the warmup."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Largest Euclidean norm of the gradient; a longer one is scaled."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format. auto: bf16 where the hardware computes it, else fp32."
    )
    validations_per_epoch: int = Field(
        1, ge=1, description="Number of validations in an epoch, evenly spaced, one at its end."
    )
    patience: int = Field(
        3,
        ge=1,
        description="Validations without a better evaluation.choose_by before training stops.",
    )
    seed: int = Field(0, description="Seed of weights, batches and all random draws.")
    report_to: list[str] = Field(
        [], description="Trackers of the transformers Trainer, as in [tensorboard]. []: none."
    )
    propensity: PropensityConfig = PropensityConfig()
    fairness: FairnessConfig = FairnessConfig()
    # In our measurements (docs: results on ways of training), none of the options below improved
    # the ranking by more than chance.
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing of the item loss; needs the full loss."
    )
    event_dropout: float = Field(
        0.0, ge=0, le=1, description="Largest probability of leaving out an event. 0: off."
    )
    event_dropout_share: float = Field(
        0.5, ge=0, le=1, description="Share of the histories that event_dropout changes."
    )
    augmentation: AugmentationConfig = AugmentationConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    average_last: int = Field(
        0,
        ge=0,
        description="Average the weights of this many last validations (arXiv:1803.05407). The "
        "average is used where evaluation.choose_by is better than at the best one. 0: off.",
    )
    teacher: str | None = Field(
        None,
        description="Folder of a model or ensemble from which the item head learns too "
        "(arXiv:1503.02531). It needs the same items and rendering, and item loss full. null: off.",
    )
    distillation: float = Field(
        1.0,
        ge=0,
        description="Weight of the divergence from the teacher, KL(teacher || model) over all "
        "items, beside the cross-entropy.",
    )

    @model_validator(mode="after")
    def _views_differ(self) -> TrainConfig:
        if self.contrastive.weight and not self.augmentation.kinds:
            raise ValueError(
                "a kind of train.augmentation (crop, mask, reorder or templates): the two views of "
                "train.contrastive would be the same"
            )
        return self


class PretrainingConfig(Section):
    """Language modelling on the rendered training log before fine-tuning; reads no labels.

    Fine-tuning continues with the adapter and, in style ``token``, the embeddings and item head.
    """

    epochs: float = Field(0.0, ge=0, description="Number of epochs. 0: no pretraining.")
    objective: Literal["masked", "causal"] = Field(
        "masked",
        description="masked: predict hidden tokens (encoders). causal: predict each token from the "
        "tokens before it (decoders, and encoders with one token an event).",
    )
    mask_share: float = Field(
        0.15, gt=0, lt=1, description="Share of the tokens that the masked objective hides."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate of pretraining.")


class PseudoLabelsConfig(Section):
    """Self-training: confident predictions become feedback labels of unlabelled events.

    Every round trains a model and predicts labels for the next one (Lee 2013).
    """

    rounds: int = Field(
        0, ge=0, description="Number of models that are trained before the last one. 0: off."
    )
    threshold: float = Field(
        0.9, gt=0.5, lt=1, description="Smallest probability of a prediction that becomes a label."
    )
    weight: float = Field(
        0.5, gt=0, description="Weight of a predicted label in the loss; a real one weighs 1."
    )


class EvaluationConfig(Section):
    """How predictions are measured; the same protocol serves recommendations and explanations."""

    exclude_seen: bool = Field(
        True, description="Whether items of the history are left out of the candidates."
    )
    cutoff: int = Field(10, ge=1, description="Length K of the list in HR@K and NDCG@K.")
    batch_size: int = Field(
        64, ge=1, description="Number of histories at a time; affects speed and memory alone."
    )
    choose_by: ChosenMetric = Field(
        "auto",
        description="Validation metric that chooses the best epoch. auto: NDCG of items, else AUC "
        "of feedback (RMSE for a regression), else accuracy of behaviours: the first that is "
        "trained.",
    )
    shift_users: int = Field(
        24,
        ge=0,
        description="Number of validation users whose removal shift is measured after training. "
        "0: it is not measured.",
    )


class UpdateConfig(Section):
    """Continual fine-tuning of a finished run on new events; read by `llm-influence update`."""

    since: str | float | None = Field(
        None,
        description="Begin of the new events: an ISO time with a zone, or a quantile of all event "
        "times between 0 and 1. null: the second after the last event of the run's log.",
    )
    replay: float = Field(
        0.5, ge=0, lt=1, description="Share of the training windows from old events. 0: no replay."
    )
