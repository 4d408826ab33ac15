"""The loss of items: against the whole catalogue, or against those that a step draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.losses import gbce, sampled_softmax
from llm_influence.training.negatives import Negatives

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
