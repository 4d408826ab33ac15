"""Additional losses and weights: adversarial, contrastive, fairness penalty, inverse propensity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from llm_influence.config.model import ItemHeadConfig
from llm_influence.config.training import AdversarialConfig, FairnessConfig, PropensityConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, DataError, SchemaError, out_of_range, unknown
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import Encoder
from llm_influence.types import FloatArray, History, IntArray


def adversarial_loss(
    loss: Callable[[Tensor], Tensor], vectors: Tensor, config: AdversarialConfig
) -> Tensor:
    """The loss at the input vectors and, if that is on, at the worst point near them.

    ``L(x) + weight * L(x + r)``, where ``r = epsilon g / |g|`` and ``g`` is the gradient of ``L``
    by the input vectors ``x`` of a window: the fast gradient method (Miyato, Dai & Goodfellow
    2017, arXiv:1605.07725). ``r`` is a constant: no gradient flows through it. A step takes about
    two and a half times as long.

    Args:
        loss: Of (B, T, H) input vectors; a sum over the windows, so that the gradient of a window
            does not depend on the other windows of the batch.
        vectors: (B, T, H) input vectors.
        config: ``epsilon`` and ``weight``.
    """
    if not config.epsilon:
        return loss(vectors)
    if not vectors.requires_grad:  # frozen embeddings
        vectors = vectors.detach().requires_grad_()
    usual = loss(vectors)
    (gradient,) = torch.autograd.grad(usual, vectors, retain_graph=True)
    return usual + config.weight * loss(vectors + perturbation(gradient, config.epsilon))


def perturbation(gradient: Tensor, epsilon: float) -> Tensor:
    """(B, T, H) perturbations, each row of length ``epsilon``; 0 where the gradient is 0."""
    gradient = gradient.detach().float()
    length = gradient.flatten(1).norm(dim=1)[:, None, None]
    return torch.where(length > 0, epsilon * gradient / length, torch.zeros_like(gradient))


NOBODY = -1
"""Owner of a window without events. It has no views, so it is no anchor and no negative."""


def contrastive_loss(views: Tensor, owners: Tensor, temperature: float) -> Tensor:
    """(B,) InfoNCE of each window, the mean over its two views (CL4SRec, arXiv:2010.14395).

    The negatives of a view are the views of other users in the micro-batch, over all processes;
    they are gathered with their gradients.

    Args:
        views: (2, B, H) last states of the two views of B windows.
        owners: (B,) user of each window; windows of one user are no negatives of each other.
        temperature: Divisor of the cosines.
    """
    views = F.normalize(views.float(), dim=-1)
    candidates, of_candidates = _from_all(views.flatten(0, 1)), _from_all(owners.repeat(2))
    negative = (owners[:, None] != of_candidates) & (of_candidates != NOBODY)
    losses = [
        info_nce(anchor, twin, candidates, negative, temperature)
        for anchor, twin in ((views[0], views[1]), (views[1], views[0]))
    ]
    return torch.stack(losses).mean(dim=0) * (owners != NOBODY)


def info_nce(
    anchors: Tensor, twins: Tensor, candidates: Tensor, negative: Tensor, temperature: float
) -> Tensor:
    """(A,) ``-log(e^{a.t / tau} / (e^{a.t / tau} + sum of e^{a.c / tau} over its negatives))``.

    van den Oord et al. 2018 (arXiv:1807.03748); with twins from the same batch it is NT-Xent.

    Args:
        anchors: (A, H) views.
        twins: (A, H) the other view of each anchor.
        candidates: (C, H) views of all windows.
        negative: (A, C) bool, True where a candidate is a negative of an anchor.
        temperature: tau.
    """
    own = (anchors * twins).sum(dim=-1, keepdim=True) / temperature
    others = (anchors @ candidates.T / temperature).masked_fill(~negative, -torch.inf)
    return torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]


def _from_all(rows: Tensor) -> Tensor:
    """(P * N, ...) rows of all P processes; gradients flow back to each."""
    if PartialState().num_processes == 1:
        return rows
    return torch.cat(all_gather(rows))


class Swaps:
    """Changes one random feature of a window's user to another random value.

    A draw depends on the seed, the epoch and the window alone, not on batch or process.

    Args:
        config: The features; nothing changes if the weight is 0.
        encoder: Has the values that occur in training.
        seed: Seed of the draws.

    Raises:
        ConfigError: The template does not render a feature, or it has a single value.
    """

    def __init__(self, config: FairnessConfig, encoder: Encoder, seed: int = 0) -> None:
        self.on = config.weight > 0
        self._names, self._seed = tuple(config.features) if self.on else (), seed
        self._values = dict(encoder.vocabulary.features)
        for name in self._names:
            if len(self._values.get(name, ())) < 2:
                known = [feature for feature, values in self._values.items() if len(values) > 1]
                raise unknown(
                    ConfigError,
                    "feature with two values in the template",
                    name,
                    known,
                    where="train.fairness.features",
                    fix="correct the name; a template without the feature needs no penalty",
                )

    def of(self, history: History, *, epoch: int, user: int, start: int) -> History:
        """The history of the same user with one feature changed."""
        random = np.random.default_rng([self._seed, 7, epoch, user, start])
        name = self._names[random.integers(len(self._names))]
        others = [value for value in self._values[name] if value != history.user.get(name)]
        changed = {**history.user, name: others[random.integers(len(others))]}
        return replace(history, user=MappingProxyType(changed))


def check_scores(config: FairnessConfig, head: ItemHeadConfig, items: int) -> None:
    """Check that training computes the probabilities that the penalty compares.

    Raises:
        ConfigError: The item head is off, or its loss is over drawn items.
    """
    if config.weight and (not head.weight or head.loss_for(items) != "full"):
        raise out_of_range(
            ConfigError,
            "train.fairness.weight",
            config.weight,
            expected="0 unless the item head has loss 'full' and a weight above 0",
            fix="set model.item_head.loss to full, or train.fairness.weight to 0",
        )


def inconsistency(model: InfluenceModel, states: Sequence[QueryState]) -> Tensor:
    """Summed divergence of the next item's probabilities between a user and a changed one.

    ``(KL(p | q) + KL(q | p)) / 2`` at each of N positions, where p and q are the probabilities of
    all items with the user's features and with one of them changed (counterfactual logit pairing,
    Garg et al. 2019, arXiv:1809.10610, on distributions). Groups with other histories still get
    other predictions. A step takes about three times as long.

    Args:
        model: The model.
        states: Two states of N positions each.
    """
    items = model.item_vectors()
    one, other = (model.item_head(state, items).float().log_softmax(dim=-1) for state in states)
    forth = F.kl_div(one, other, reduction="sum", log_target=True)
    back = F.kl_div(other, one, reduction="sum", log_target=True)
    return (forth + back) / 2


def label_weights(
    config: PropensityConfig, catalogue: Catalogue, log: BehaviorLog
) -> FloatArray | None:
    """(I,) float32 weights of labels by inverse propensity of their item; None if all are 1.

    A log shows choices among what was shown. If an item comes next with a probability proportional
    to interest times propensity, labels with weights of 1 / propensity are those of a log without
    that factor (Schnabel et al. 2016, arXiv:1602.05352; popularity as propensity: Saito et al.
    2020, arXiv:1909.03601).

    The weights are ``1 / max(propensity, clip)``, divided by their mean over the labels of ``log``.
    Clipping bounds the weight of a rare item; the division keeps the scale of the loss.

    Raises:
        SchemaError: The item table has no such column of numbers.
        DataError: An item of training has no exposure above 0.
    """
    if config.source == "none":
        return None
    counts = np.bincount(log.items, minlength=len(catalogue))
    shown = counts if config.column is None else _exposures(config.column, catalogue, counts)
    power = config.power or (0.5 if config.column is None else 1.0)
    propensities = (shown / shown.max()) ** power
    weights = 1 / np.maximum(propensities, config.clip)
    mean = (weights @ counts) / counts.sum()
    return (weights / mean).astype(np.float32)


def _exposures(name: str, catalogue: Catalogue, counts: IntArray) -> FloatArray:
    """(I,) numbers of the column; 0 for items that never occur and have none."""
    table, where = catalogue.table, "train.propensity.column"
    if name not in table.column_names:
        fix = "name the column with the number of times that each item was shown"
        raise unknown(SchemaError, "item column", name, table.column_names, where=where, fix=fix)
    column = table[name]
    if pa.types.is_string(column.type):  # of a CSV file, whose columns are text
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        shown = column.cast(pa.float64()).fill_null(0).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {name!r} has type {column.type} ({error})",
            where=where,
            expected="numbers",
            fix="write the exposures as numbers",
        ) from error
    bad = (counts > 0) & ~((shown > 0) & np.isfinite(shown))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"item {catalogue.ids[row].as_py()!r} occurs in training and its {name!r} is "
            f"{table[name][row].as_py()}",
            where=where,
            expected="a number above 0 for every item of training",
            fix="correct the exposures",
        )
    return np.where(np.isfinite(shown), np.maximum(shown, 0), 0)
