"""Losses of the next item against a few others instead of the whole catalogue.

The loss of items: against the whole catalogue, or against those that a step draws.

The loss: what comes next, after every event of every window, in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.config.training import AdversarialConfig, ContrastiveConfig, FairnessConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.augmentation import Negatives
from llm_influence.training.batches import IGNORE, Inputs
from llm_influence.training.regularizers import (
    adversarial_loss,
    check_scores,
    contrastive_loss,
    inconsistency,
)
from llm_influence.types import FloatArray


def sampled_softmax(
    own: Tensor, others: Tensor, unused: Tensor, own_log_q: Tensor, others_log_q: Tensor
) -> Tensor:
    """(N,) cross-entropy among a label and the drawn items, corrected for how they were drawn.

    ``-log softmax(s - log q)`` at the label, over the label and the drawn items that are not it
    (Bengio & Senecal 2008; logQ correction: Yi et al. 2019, doi:10.1145/3298689.3346996). With
    q the probability of inclusion this is the exact posterior of the label given the set, so
    the true log-probabilities minimise it for any number of drawn items.

    Args:
        own: (N,) logit of each position's label.
        others: (N, K) logits of the drawn items.
        unused: (N, K) bool, where a drawn item does not count, as it is the label itself.
        own_log_q: (N,) log-probability that the label would have been drawn.
        others_log_q: (K,) log-probability that a drawn item was.
    """
    own = (own - own_log_q)[:, None]
    others = (others - others_log_q).masked_fill(unused, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def gbce(
    own: Tensor, others: Tensor, unused: Tensor, *, rate: float, items: int, calibration: float
) -> Tensor:
    """(N,) generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv:2308.07192).

    ``(-beta log sigma(s) - sum of log(1 - sigma(other s))) / (k + 1)``, where
    ``beta = rate (t (1 - 1 / rate) + 1 / rate)``: plain BCE is overconfident by as much as
    negatives are rarer in training than in the catalogue. ``k = rate (items - 1)`` is how many
    negatives a label has on average, so that the size of a draw does not weigh on its items.

    Args:
        own: (N,) logit of each position's label.
        others: (N, K) logits of items drawn evenly.
        unused: (N, K) bool, where a drawn item does not count, as it is the label itself.
        rate: Probability that an item is drawn.
        items: Size of the catalogue.
        calibration: t; 0 is plain BCE, 1 gives calibrated probabilities.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    negatives = F.softplus(others).masked_fill(unused, 0).sum(dim=1)  # -log(1 - sigma(s))
    return (negatives - beta * F.logsigmoid(own)) / (1 + rate * (items - 1))


FILL = 128
"""Drawn items are made up to a multiple of this: the libraries below keep what they prepare for
every shape of a product, some MiB each, and a new shape in every step would fill the memory."""


class ItemLoss:
    """Cross-entropy of items by the item head, or one of the losses that draw.

    Args:
        model: Gives head, item vectors and the kind of loss.
        label_smoothing: Of the full cross-entropy.
        negatives: What a step draws, for a loss that draws; the item vectors that are computed
            are then those of the labels and the drawn items alone.

    Raises:
        ConfigError: Labels are to be smoothed over a catalogue that is not scored whole.
    """

    def __init__(
        self,
        model: InfluenceModel,
        *,
        label_smoothing: float = 0.0,
        negatives: Negatives | None = None,
    ) -> None:
        if label_smoothing and negatives is not None:
            raise ConfigError(
                f"train.label_smoothing is {label_smoothing}",
                where="model.item_head.loss",
                expected="no smoothing where a step scores a few items only",
                fix="set train.label_smoothing to 0, or model.item_head.loss to full",
            )
        self._model, self._smoothing, self._negatives = model, label_smoothing, negatives

    def __call__(
        self, states: Tensor, labels: Tensor, step: int, weights: Tensor | None = None
    ) -> Tensor:
        """Summed loss of the (N,) labels from (N, H) states in optimiser step ``step``.

        ``weights`` (N,) say how much each label counts; default: 1.
        """
        head = self._model.item_head
        if self._negatives is None:
            logits = head(states, self._model.item_vectors()).float()
            return weighted_entropy(logits, labels, weights, smoothing=self._smoothing)
        drawn, real = (column.to(labels.device) for column in _filled(self._negatives.draw(step)))
        # one call: an item is the same item as a label and as one that was drawn
        vectors = self._model.units(self._model.first_item + torch.cat([labels, drawn]))
        own = head.pairs(states, vectors[: len(labels)]).float()
        others = head(states, vectors[len(labels) :]).float()
        unused = (labels[:, None] == drawn) | ~real
        inclusion = self._negatives.inclusion.to(labels.device)
        config = self._model.config.item_head
        if config.loss == "gbce":
            rate, t = float(inclusion[0]), config.calibration
            size = len(inclusion)
            losses = gbce(own, others, unused, rate=rate, items=size, calibration=t)
        else:
            own_log_q, others_log_q = inclusion[labels].log(), inclusion[drawn].log()
            losses = sampled_softmax(own, others, unused, own_log_q, others_log_q)
        return losses.sum() if weights is None else losses @ weights


def weighted_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, *, smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy of (N, K) logits, each label counted by its (N,) weight; default: 1."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return losses @ weights


def _filled(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) items made up to a multiple of `FILL`, and (K,) bool which of them were drawn."""
    real = torch.arange(-(-len(drawn) // FILL) * FILL) < len(drawn)
    filled = torch.zeros(len(real), dtype=torch.int64)
    filled[real] = drawn
    return filled, real


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
        query_time: Tensor,
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
            query_time: (B, L) place of the token from whose state each is predicted.
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
            swapped_at: (B, L) as ``query_time``.
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
            return self._heads_loss(self._asked_states(batch, query_time, vectors)[known], wanted)

        loss = adversarial_loss(loss_at, self.model.embed(batch), self.adversarial)
        if pairs is not None and owners is not None:
            loss = loss + self.contrastive.weight * self._pairs_loss(pairs, owners, known)
        if swapped is not None and swapped_at is not None:
            others = self._asked_states(EncodedBatch(**swapped), swapped_at)[known]
            own = self._asked_states(batch, query_time)[known]
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
