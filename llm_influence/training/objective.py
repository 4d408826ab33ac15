"""The loss of fine-tuning: next item, next behaviour and feedback after every event of a window.

The losses of the item head are in `item_losses`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_influence.config.training import AdversarialConfig, ContrastiveConfig, FairnessConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.training.augmentation import Negatives
from llm_influence.training.batches import IGNORE, Inputs, encoded_batch
from llm_influence.training.item_losses import ItemLoss, weighted_entropy
from llm_influence.training.regularizers import (
    adversarial_loss,
    check_scores,
    contrastive_loss,
    inconsistency,
)
from llm_influence.types import FloatArray


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels and weights at the N predicted positions of a micro-batch.

    Attributes:
        items: (N,) item codes.
        behaviors: (N,) behaviour codes.
        gaps: (N,) gap codes from the last event to the query time, for heads that read them.
        feedback: (N,) labels, NaN without one; None without a feedback head.
        feedback_weights: (N,) weights of the feedback labels; None: 1.
        propensity: (N,) weights of the events in all losses; None: 1.
        step: Number of the optimiser step.
        teacher: (N, I) log-probabilities of the teacher; None without one.
    """

    items: Tensor
    behaviors: Tensor
    gaps: Tensor | None
    feedback: Tensor | None
    feedback_weights: Tensor | None
    propensity: Tensor | None
    step: int
    teacher: Tensor | None = None

    @classmethod
    def of(cls, inputs: Inputs, propensity: Tensor | None, step: int) -> Targets:
        """The targets among the inputs of a micro-batch, with (I,) weights by item."""
        known = inputs["labels"] != IGNORE

        def column(name: str) -> Tensor | None:
            return inputs[name][known] if name in inputs else None

        return cls(
            items=inputs["labels"][known],
            behaviors=inputs["behavior_labels"][known],
            gaps=column("label_when"),
            feedback=column("feedback_labels"),
            feedback_weights=column("feedback_weights"),
            propensity=None if propensity is None else propensity[inputs["labels"][known]],
            step=step,
        )


class NextEventObjective(nn.Module):
    """Weighted sum of the losses of the next item, the next behaviour and the feedback on it.

    All heads predict after every event, from one evaluation of the backbone. Losses are divided by
    the number of labels of the whole optimiser step, over all processes and micro-batches, so they
    do not depend on how a step is cut. Feedback may be rare: its loss is also divided by the share
    of training events with a label, so its weight is that of a mean loss. A head of weight 0 is
    neither computed nor trained.

    Args:
        model: The model that is trained.
        label_smoothing: Of the item loss.
        negatives: Draws the items of a step, see `ItemLoss`.
        contrastive: Weight and temperature of the loss between the views in ``pairs``.
        adversarial: Size of the perturbation of input vectors, and weight of the loss there.
        propensity: (I,) weight of a label by its item, with a mean of 1 over all labels
            (`label_weights`); default: 1.
        fairness: Weight of the penalty between the windows and the ``swapped`` ones.
        read: Share of the training events that are read (`WindowDataset.read`).
        teacher: Model whose item probabilities are learned too; it is not trained.
        distillation: Weight of the divergence from the teacher.

    Raises:
        ConfigError: The teacher does not fit. Label smoothing, or the fairness penalty, with a loss
            over drawn items.
    """

    propensity: Tensor | None

    def __init__(
        self,
        model: InfluenceModel,
        *,
        label_smoothing: float = 0.0,
        negatives: Negatives | None = None,
        contrastive: ContrastiveConfig | None = None,
        adversarial: AdversarialConfig | None = None,
        propensity: FloatArray | None = None,
        fairness: FairnessConfig | None = None,
        read: float = 1.0,
        teacher: InfluenceModel | None = None,
        distillation: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.read = model, read
        _freeze_idle(model)
        self.item_loss = ItemLoss(
            model,
            label_smoothing=label_smoothing,
            negatives=negatives,
            distillation=distillation,
        )
        if teacher is not None:
            check_teacher(teacher, model, drawn=negatives is not None)
        self._teacher = (teacher,)  # in a tuple: no part of this module, which is trained
        self.contrastive = contrastive or ContrastiveConfig()
        self.adversarial = adversarial or AdversarialConfig()
        weights = None if propensity is None else torch.from_numpy(propensity)
        self.register_buffer("propensity", weights, persistent=False)
        self.fairness = fairness or FairnessConfig()
        check_scores(self.fairness, model.config.item_head, len(model.catalogue))

    def forward(
        self,
        num_items_in_batch: Tensor | int | None = None,
        step: int = 0,
        **inputs: Any,  # noqa: ANN401 - tensors, and dicts of tensors
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch.

        Args:
            num_items_in_batch: Labels of the whole step; default: of this micro-batch.
            step: Number of the optimiser step, which decides the drawn items.
            inputs: What `WindowCollator` returns.
        """
        batch, places = encoded_batch(inputs), inputs["query_time"]
        known = inputs["labels"] != IGNORE
        targets, folds = Targets.of(inputs, self.propensity, step), inputs.get("folds")
        targets = replace(targets, teacher=self._taught(batch, places, known, targets.gaps))

        def loss_at(vectors: Tensor) -> Tensor:
            """Summed loss of all heads, from (B, T, H) input vectors."""
            states = self.model.query_at(batch, places, vectors, folds)
            return self._heads_loss(states[known], targets)

        loss = adversarial_loss(loss_at, self.model.embed(batch), self.adversarial)
        if "pairs" in inputs:
            pairs_loss = self._pairs_loss(inputs["pairs"], inputs["owners"], known)
            loss = loss + self.contrastive.weight * pairs_loss
        if "swapped" in inputs:
            other, other_places = encoded_batch(inputs["swapped"]), inputs["swapped_at"]
            swapped = self.model.query_at(other, other_places, folds=folds)
            own = self.model.query_at(batch, places, folds=folds)
            pair = [self._at_query_time(states[known], targets) for states in (own, swapped)]
            loss = loss + self.fairness.weight * inconsistency(self.model, pair)
        penalty = self.model.adapter.penalty()
        if penalty is not None:  # times labels, so that a step adds it once, however it is cut
            loss = loss + penalty * known.sum()
        return {"loss": loss / (known.sum() if num_items_in_batch is None else num_items_in_batch)}

    def _taught(
        self, batch: EncodedBatch, places: Tensor, known: Tensor, gaps: Tensor | None
    ) -> Tensor | None:
        """(N, I) log-probabilities of the teacher; None without one."""
        (teacher,) = self._teacher
        if teacher is None:
            return None
        teacher.to(known.device).eval()
        with torch.no_grad():
            return teacher.training_logits(batch, places, known, gaps).float().log_softmax(dim=1)

    def _at_query_time(self, states: QueryState, targets: Targets) -> QueryState:
        return states if targets.gaps is None else self.model.at_time(states, targets.gaps)

    def _heads_loss(self, states: QueryState, targets: Targets) -> Tensor:
        """Summed loss of all trained heads from (N,) states."""
        config, losses = self.model.config, []
        states = self._at_query_time(states, targets)
        if config.item_head.weight:
            labels, weights = targets.items, targets.propensity
            loss = self.item_loss(states, labels, targets.step, weights, targets.teacher)
            losses.append(config.item_head.weight * loss)
        if config.behavior_head.weight:
            logits = self.model.behavior_head(states.hidden).float()
            loss = weighted_entropy(logits, targets.behaviors, targets.propensity)
            losses.append(config.behavior_head.weight * loss)
        if targets.feedback is not None:
            loss = self._feedback_loss(states, targets, targets.feedback)
            losses.append(config.feedback_head.weight * loss)
        return torch.stack(losses).sum()

    def _feedback_loss(self, states: QueryState, targets: Targets, labels: Tensor) -> Tensor:
        """Summed loss of the (N,) labels that are not NaN, over the share of events with a label.

        The share is among the events that are read. Without a label the loss is a zero that
        depends on the head, as all processes must train the same parameters.
        """
        head, known = self.model.trained_feedback, ~labels.isnan()
        scores = self.model.feedback_scores(
            states[known], targets.items[known], targets.behaviors[known]
        )
        losses = head.link.loss(scores, labels[known])
        for weights in (targets.feedback_weights, targets.propensity):
            if weights is not None:
                losses = losses * weights[known]
        return losses.sum() * (self.read / head.scale.share)

    def _pairs_loss(self, pairs: Inputs, owners: Tensor, known: Tensor) -> Tensor:
        """Contrastive loss of each window, times its number of labels.

        So the mean over the labels of a step is a mean over its windows, however the step is cut.
        """
        views = self.model.last_states(encoded_batch(pairs)).view(2, len(owners), -1)
        losses = contrastive_loss(views, owners, self.contrastive.temperature)
        return known.sum(dim=1).float() @ losses


def _freeze_idle(model: InfluenceModel) -> None:
    """Turn off gradients of heads of weight 0, and of item vectors that no head reads then."""
    config = model.config
    for head, weight in (
        (model.item_head, config.item_head.weight),
        (model.behavior_head, config.behavior_head.weight),
    ):
        if not weight:
            head.requires_grad_(requires_grad=False)
    reads_items = config.item_head.weight or config.feedback_head.weight
    if model.encoder.style == "text" and not reads_items:
        model.embeddings.requires_grad_(requires_grad=False)


def check_teacher(teacher: InfluenceModel, model: InfluenceModel, *, drawn: bool = False) -> None:
    """Refuse a teacher that cannot read the training batches of a model.

    Args:
        teacher: The teacher.
        model: The model that is trained.
        drawn: Whether its item loss is over drawn items.

    Raises:
        ConfigError: The item loss is not full, or items, behaviours or rendering differ.
    """
    if drawn or not model.config.item_head.weight:
        raise ConfigError(
            "a teacher without the full item loss",
            where="train.teacher",
            expected="model.item_head.loss full, with a weight above 0",
            fix="set model.item_head.loss to full, or leave train.teacher out",
        )
    for member in teacher.models if isinstance(teacher, Ensemble) else [teacher]:
        if isinstance(member, Ensemble):
            check_teacher(member, model, drawn=drawn)
            continue
        one, other = member.encoder, model.encoder
        pairs = {
            "items": (one.vocabulary.catalogue.ids, other.vocabulary.catalogue.ids),
            "behaviours": (one.vocabulary.behaviors, other.vocabulary.behaviors),
            "features": (one.vocabulary.features, other.vocabulary.features),
            "value bins": (
                one.vocabulary.values.edges.tolist(),
                other.vocabulary.values.edges.tolist(),
            ),
            "templates": (one.template, other.template),
            "styles": (one.style, other.style),
            "positions": (member.config.positions, model.config.positions),
        }
        if one.style == "text":  # the tokens are those of the backbone's tokenizer
            pairs["backbones"] = (member.config.backbone, model.config.backbone)
        differing = [what for what, (ours, theirs) in pairs.items() if ours != theirs]
        if differing:
            raise ConfigError(
                f"the teacher has other {', '.join(differing)}",
                where="train.teacher",
                expected="a teacher, or members of an ensemble, that read the same batches",
                fix="train the teacher with the same data, rendering and, in style text, backbone",
            )
