"""The loss: what comes next, after every event of every window, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.losses import gbce, sampled_softmax
from llm_influence.training.negatives import Negatives
from llm_influence.training.windows import IGNORE

FILL = 128
"""Drawn items are made up to a multiple of this: the libraries below keep what they prepare for
every shape of a product, some MiB each, and a new shape in every step would fill the memory."""


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
        super().__init__()
        if label_smoothing and negatives is not None:
            raise ConfigError(
                f"train.label_smoothing is {label_smoothing}",
                where="model.item_head.loss",
                expected="no smoothing where a step scores a few items only",
                fix="set train.label_smoothing to 0, or model.item_head.loss to full",
            )
        self.model = model
        _freeze_idle(model)
        self.label_smoothing = label_smoothing
        self.negatives = negatives

    def forward(
        self,
        labels: Tensor,
        behavior_labels: Tensor,
        asked_at: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        step: int = 0,
        label_when: Tensor | None = None,
        feedback_labels: Tensor | None = None,
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
            inputs: The tensors of an `EncodedBatch`.
        """
        batch = EncodedBatch(**inputs)
        states = self.model.states(batch)
        rows = torch.arange(len(states), device=states.device)[:, None]
        known = labels != IGNORE
        states = states[rows, asked_at][known]
        if label_when is not None:
            states = self.model.asked(states, label_when[known])
        items, behaviors = labels[known], behavior_labels[known]
        config, losses = self.model.config, []
        if config.item_head.weight:
            losses.append(config.item_head.weight * self._item_loss(states, items, step))
        if config.behavior_head.weight:
            logits = self.model.behavior_head(states).float()
            entropy = F.cross_entropy(logits, behaviors, reduction="sum")
            losses.append(config.behavior_head.weight * entropy)
        if feedback_labels is not None:
            answered = self._feedback_loss(states, items, behaviors, feedback_labels[known])
            losses.append(config.feedback_head.weight * answered)
        loss = torch.stack(losses).sum()
        penalty = self.model.adapter.penalty()
        if penalty is not None:  # by labels, so that a step adds it once, however it is cut
            loss = loss + penalty * known.sum()
        return {"loss": loss / (known.sum() if num_items_in_batch is None else num_items_in_batch)}

    def _feedback_loss(
        self, states: Tensor, items: Tensor, behaviors: Tensor, labels: Tensor
    ) -> Tensor:
        """Summed loss of the (N,) labels that are no NaN, over the share of events that have any.

        Without any it is a zero that still reaches the head, as processes must agree on what is
        trained.
        """
        head, asked = self.model.trained_feedback, ~labels.isnan()
        scores = self.model.feedback_scores(states[asked], items[asked], behaviors[asked])
        return head.link.loss(scores, labels[asked]).sum() / head.scale.share

    def _item_loss(self, states: Tensor, labels: Tensor, step: int) -> Tensor:
        """Summed loss of the (N,) labels from (N, H) states."""
        head = self.model.item_head
        if self.negatives is None:
            logits = head(states, self.model.item_vectors()).float()
            smoothing = self.label_smoothing
            return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        drawn, real = (column.to(labels.device) for column in _filled(self.negatives.draw(step)))
        # one call: an item is the same item as a label and as one that was drawn
        vectors = self.model.units(self.model.first_item + torch.cat([labels, drawn]))
        own = head.pairs(states, vectors[: len(labels)]).float()
        others = head(states, vectors[len(labels) :]).float()
        unused = (labels[:, None] == drawn) | ~real
        inclusion = self.negatives.inclusion.to(labels.device)
        config = self.model.config.item_head
        if config.loss == "gbce":
            rate, t = float(inclusion[0]), config.calibration
            return gbce(own, others, unused, rate=rate, items=len(inclusion), calibration=t).sum()
        own_log_q, others_log_q = inclusion[labels].log(), inclusion[drawn].log()
        return sampled_softmax(own, others, unused, own_log_q, others_log_q).sum()


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


def _filled(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) items made up to a multiple of `FILL`, and (K,) bool which of them were drawn."""
    real = torch.arange(-(-len(drawn) // FILL) * FILL) < len(drawn)
    filled = torch.zeros(len(real), dtype=torch.int64)
    filled[real] = drawn
    return filled, real
