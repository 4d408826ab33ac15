"""The loss: what comes next, after every event of every window, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_influence.config import AdversarialConfig, ContrastiveConfig, FairnessConfig
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.adversarial import adversarial_loss
from llm_influence.training.contrastive import contrastive_loss
from llm_influence.training.fairness import check_scores, inconsistency
from llm_influence.training.item_loss import ItemLoss, weighted_entropy
from llm_influence.training.negatives import Negatives
from llm_influence.training.windows import IGNORE, Inputs
from llm_influence.types import FloatArray


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be predicted at N positions of a micro-batch.

    Attributes:
        items: (N,) item codes.
        behaviors: (N,) behaviour codes.
        when: (N,) gap codes from the last event to each, where heads read them.
        feedback: (N,) labels, NaN where none is asked; None without a feedback head.
        weights: (N,) how much each of these counts; None: 1.
        propensity: (N,) how much each event counts in all losses; None: 1.
        step: Number of the optimiser step.
    """

    items: Tensor
    behaviors: Tensor
    when: Tensor | None
    feedback: Tensor | None
    weights: Tensor | None
    propensity: Tensor | None
    step: int


class NextEventObjective(nn.Module):
    """Weighted losses of the next item, the next behaviour and the feedback on the next event.

    All heads are asked after every event of the same pass. Sums over positions are divided by the
    number of labels in the whole optimiser step, over all processes and micro-batches, so the loss
    does not depend on how a step is cut up. Feedback may be rare: its sum is divided by the share
    of training events that have any as well, so that its weight is that of an answer's mean loss.
    A head of weight 0 is neither computed nor trained.

    Args:
        model: The model that is trained.
        label_smoothing: Of the item loss.
        negatives: What a step draws, for a loss that draws; the item vectors that are computed
            are then those of the inputs, the labels and the drawn items alone.
        contrastive: Weight and temperature of the loss between ``pairs``, where they are given.
        adversarial: How far input vectors are moved for a second loss; default: not at all.
        propensity: (I,) how much a label counts by its item, with a mean of 1 over all labels
            (`training.propensity`); default: all alike.
        fairness: Weight of the penalty between windows and ``swapped`` ones, where they are given.
        read: Share of training's events that are read, where windows without feedback are not.

    Raises:
        ConfigError: Labels are to be smoothed over a catalogue that is not scored whole, or a
            penalty is asked for that the item head cannot give.
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
    ) -> None:
        super().__init__()
        self.model, self.read = model, read
        _freeze_idle(model)
        self.item_loss = ItemLoss(model, label_smoothing=label_smoothing, negatives=negatives)
        self.contrastive = contrastive or ContrastiveConfig()
        self.adversarial = adversarial or AdversarialConfig()
        weights = None if propensity is None else torch.from_numpy(propensity)
        self.register_buffer("propensity", weights, persistent=False)
        self.fairness = fairness or FairnessConfig()
        check_scores(self.fairness, model.config.item_head, len(model.catalogue))

    def forward(
        self,
        labels: Tensor,
        behavior_labels: Tensor,
        asked_at: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        step: int = 0,
        label_when: Tensor | None = None,
        feedback_labels: Tensor | None = None,
        feedback_weights: Tensor | None = None,
        pairs: Inputs | None = None,
        owners: Tensor | None = None,
        swapped: Inputs | None = None,
        swapped_at: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch.

        Args:
            labels: (B, L) items to be predicted, by code.
            behavior_labels: (B, L) their events' behaviours, by code.
            asked_at: (B, L) place of the token from whose state each is predicted.
            num_items_in_batch: Labels of the whole step; default: of this micro-batch.
            step: Number of the optimiser step; says which items are drawn.
            label_when: (B, L) gap code from the last event before each to its own moment; needed
                where the model's heads read it.
            feedback_labels: (B, L) labels of feedback, NaN where none is asked; needed by a
                feedback head.
            feedback_weights: (B, L) how much each of these counts; default: 1.
            pairs: The tensors of an `EncodedBatch` of 2B rows, two views of each window.
            owners: (B,) users of the windows, see `contrastive_loss`.
            swapped: The tensors of an `EncodedBatch` of B rows, a feature of each user changed.
            swapped_at: (B, L) as ``asked_at``.
            inputs: The tensors of an `EncodedBatch`.
        """
        batch, known = EncodedBatch(**inputs), labels != IGNORE
        wanted = Wanted(
            labels[known],
            behavior_labels[known],
            None if label_when is None else label_when[known],
            None if feedback_labels is None else feedback_labels[known],
            None if feedback_weights is None else feedback_weights[known],
            None if self.propensity is None else self.propensity[labels[known]],
            step,
        )

        def loss_at(vectors: Tensor) -> Tensor:
            """Summed loss of all heads, from (B, T, H) input vectors."""
            return self._heads_loss(self._asked_states(batch, asked_at, vectors)[known], wanted)

        loss = adversarial_loss(loss_at, self.model.embed(batch), self.adversarial)
        if pairs is not None and owners is not None:
            loss = loss + self.contrastive.weight * self._pairs_loss(pairs, owners, known)
        if swapped is not None and swapped_at is not None:
            others = self._asked_states(EncodedBatch(**swapped), swapped_at)[known]
            own = self._asked_states(batch, asked_at)[known]
            pair = [self._when_asked(each, wanted) for each in (own, others)]
            loss = loss + self.fairness.weight * inconsistency(self.model, pair)
        penalty = self.model.adapter.penalty()
        if penalty is not None:  # by labels, so that a step adds it once, however it is cut
            loss = loss + penalty * known.sum()
        return {"loss": loss / (known.sum() if num_items_in_batch is None else num_items_in_batch)}

    def _asked_states(
        self, batch: EncodedBatch, places: Tensor, vectors: Tensor | None = None
    ) -> Tensor:
        """(B, L, Q) states at (B, L) places, and what was seen up to them."""
        states = self.model.states(batch, vectors)
        states = torch.take_along_dim(states, places[..., None], dim=1)
        return self.model.remember(states, batch, places)

    def _when_asked(self, states: Tensor, wanted: Wanted) -> Tensor:
        return states if wanted.when is None else self.model.asked(states, wanted.when)

    def _heads_loss(self, states: Tensor, wanted: Wanted) -> Tensor:
        """Summed loss of all trained heads, from (N, Q) states before what is wanted of them."""
        config, losses = self.model.config, []
        states = self._when_asked(states, wanted)
        if config.item_head.weight:
            found = self.item_loss(states, wanted.items, wanted.step, wanted.propensity)
            losses.append(config.item_head.weight * found)
        if config.behavior_head.weight:
            logits = self.model.behavior_head(states).float()
            entropy = weighted_entropy(logits, wanted.behaviors, wanted.propensity)
            losses.append(config.behavior_head.weight * entropy)
        if wanted.feedback is not None:
            answered = self._feedback_loss(states, wanted, wanted.feedback)
            losses.append(config.feedback_head.weight * answered)
        return torch.stack(losses).sum()

    def _feedback_loss(self, states: Tensor, wanted: Wanted, labels: Tensor) -> Tensor:
        """Summed loss of the (N,) labels that are no NaN, over the share of events that have any.

        That share is among the events that are read.

        Without any it is a zero that still reaches the head, as processes must agree on what is
        trained.
        """
        head, asked = self.model.trained_feedback, ~labels.isnan()
        scores = self.model.feedback_scores(
            states[asked], wanted.items[asked], wanted.behaviors[asked]
        )
        losses = head.link.loss(scores, labels[asked])
        if wanted.weights is not None:
            losses = losses * wanted.weights[asked]
        if wanted.propensity is not None:
            losses = losses * wanted.propensity[asked]
        return losses.sum() * (self.read / head.scale.share)

    def _pairs_loss(self, pairs: Inputs, owners: Tensor, known: Tensor) -> Tensor:
        """Contrastive loss of each window, counted once for every label that it has.

        So the mean over a step's labels is a mean over its windows, however the step is cut.
        """
        states = self.model.last_states(EncodedBatch(**pairs))
        views = states.view(2, len(owners), -1)
        return known.sum(dim=1).float() @ contrastive_loss(
            views, owners, self.contrastive.temperature
        )


def _freeze_idle(model: InfluenceModel) -> None:
    """Heads of weight 0, and unit vectors that nothing reads then, get no gradient."""
    config = model.config
    for head, weight in (
        (model.item_head, config.item_head.weight),
        (model.behavior_head, config.behavior_head.weight),
    ):
        if not weight:
            head.requires_grad_(requires_grad=False)
    reads_items = config.item_head.weight or config.feedback_head.weight
    if model.encoder.style == "text" and not reads_items:
        model.units.requires_grad_(requires_grad=False)
