"""Losses of the item head, over the whole catalogue or over the items drawn for a step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_influence.errors import ConfigError, out_of_range
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.augmentation import Negatives


def sampled_softmax(
    own: Tensor, others: Tensor, unused: Tensor, own_log_q: Tensor, others_log_q: Tensor
) -> Tensor:
    """(N,) cross-entropy of labels among the drawn items, with logQ correction.

    ``-log softmax(s - log q)`` at the label, over the label and the other drawn items (Bengio &
    Senecal 2008; logQ correction: Yi et al. 2019, doi:10.1145/3298689.3346996). With q the
    probability of inclusion this is the exact posterior of the label given the drawn set. So the
    true log-probabilities minimise it for any number of drawn items.

    Args:
        own: (N,) logits of the labels.
        others: (N, K) logits of the drawn items.
        unused: (N, K) bool, True where a drawn item is left out, as it is the label itself.
        own_log_q: (N,) log-probability of inclusion of the labels.
        others_log_q: (K,) log-probability of inclusion of the drawn items.
    """
    own = (own - own_log_q)[:, None]
    others = (others - others_log_q).masked_fill(unused, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def gbce(
    own: Tensor, others: Tensor, unused: Tensor, *, rate: float, items: int, calibration: float
) -> Tensor:
    """(N,) generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv:2308.07192).

    ``(-beta log sigma(s) - sum of log(1 - sigma(other s))) / (k + 1)``, where
    ``beta = rate (t (1 - 1 / rate) + 1 / rate)``. Plain BCE is overconfident, as negatives are
    rarer in training than in the catalogue. ``k = rate (items - 1)`` is the expected number of
    negatives, so the loss does not depend on the size of a draw.

    Args:
        own: (N,) logits of the labels.
        others: (N, K) logits of uniformly drawn items.
        unused: (N, K) bool, True where a drawn item is left out, as it is the label itself.
        rate: Probability of inclusion of an item.
        items: Size of the catalogue.
        calibration: t; 0 is plain BCE, 1 gives calibrated probabilities.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    negatives = F.softplus(others).masked_fill(unused, 0).sum(dim=1)  # -log(1 - sigma(s))
    return (negatives - beta * F.logsigmoid(own)) / (1 + rate * (items - 1))


FILL = 128
"""Drawn items are padded to a multiple of this. The matrix libraries cache some MiB for every shape
of a product, so a new shape in every step would fill the memory."""


class ItemLoss:
    """The loss of the item head: full cross-entropy, or one of the losses over drawn items.

    Args:
        model: Has the item head, the item vectors and the kind of loss.
        label_smoothing: Of the full cross-entropy.
        negatives: Draws the items of a step; default: the whole catalogue. With a draw, only the
            vectors of labels and drawn items are computed.
        distillation: Weight of ``KL(teacher || model)`` over the catalogue, in nats (Hinton et al.
            2015, arXiv:1503.02531), where a teacher's log-probabilities are given.

    Raises:
        ConfigError: Label smoothing with a loss over drawn items.
    """

    def __init__(
        self,
        model: InfluenceModel,
        *,
        label_smoothing: float = 0.0,
        negatives: Negatives | None = None,
        distillation: float = 0.0,
    ) -> None:
        if label_smoothing and negatives is not None:
            raise out_of_range(
                ConfigError,
                "train.label_smoothing",
                label_smoothing,
                expected="0 with a loss over drawn items",
                fix="set train.label_smoothing to 0, or model.item_head.loss to full",
            )
        self._model, self._smoothing, self._negatives = model, label_smoothing, negatives
        self._distillation = distillation

    def __call__(
        self,
        states: QueryState,
        labels: Tensor,
        step: int,
        weights: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> Tensor:
        """Summed loss of labels.

        Args:
            states: (N,) states that predict the labels.
            labels: (N,) item codes.
            step: Number of the optimiser step, which decides the drawn items.
            weights: (N,) weights of the labels; default: 1.
            teacher: (N, I) log-probabilities of the teacher; default: no teacher.
        """
        head = self._model.item_head
        if self._negatives is None:
            logits = head(states, self._model.item_vectors()).float()
            loss = weighted_entropy(logits, labels, weights, smoothing=self._smoothing)
            if teacher is None:
                return loss
            return loss + self._distillation * divergence(teacher, logits, weights)
        drawn, real = (column.to(labels.device) for column in _filled(self._negatives.draw(step)))
        # one call, so that a label and the same item in the draw have the same vector
        vectors = self._model.embeddings(self._model.first_item + torch.cat([labels, drawn]))
        own = head.pairs(states.hidden, vectors[: len(labels)]).float()
        others = head(states, vectors[len(labels) :]).float()
        unused = (labels[:, None] == drawn) | ~real
        inclusion = self._negatives.inclusion.to(labels.device)
        config = self._model.config.item_head
        if config.loss == "gbce":
            rate, size = float(inclusion[0]), len(inclusion)
            calibration = config.calibration
            losses = gbce(own, others, unused, rate=rate, items=size, calibration=calibration)
        else:
            own_log_q, others_log_q = inclusion[labels].log(), inclusion[drawn].log()
            losses = sampled_softmax(own, others, unused, own_log_q, others_log_q)
        return losses.sum() if weights is None else losses @ weights


def weighted_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, *, smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy of (N, K) logits, times (N,) weights; default: 1."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return losses @ weights


def divergence(teacher: Tensor, logits: Tensor, weights: Tensor | None) -> Tensor:
    """Summed ``KL(teacher || model)`` of (N, I) log-probabilities and logits, times weights."""
    logs = logits.log_softmax(dim=1)
    losses = F.kl_div(logs, teacher, reduction="none", log_target=True).sum(dim=1)
    return losses.sum() if weights is None else losses @ weights


def _filled(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) items padded to a multiple of `FILL`, and (K,) bool, True at drawn items."""
    real = torch.arange(-(-len(drawn) // FILL) * FILL) < len(drawn)
    filled = torch.zeros(len(real), dtype=torch.int64)
    filled[real] = drawn
    return filled, real
