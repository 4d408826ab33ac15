"""The average of several models: queries, logits, and weights that validation chooses.

With weights w that sum to 1, the probability of class c is

    p(c) = softmax over c of the sum over members m of w_m log p_m(c)

This is the product of experts with exponents w_m. Items and behaviours are averaged so. Feedback is
the weighted mean of the members' log-odds (of their labels, for a regression).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from llm_influence.data.splits import EvaluationSet
from llm_influence.errors import ModelError, ModelFolderError, out_of_range, unreadable
from llm_influence.modeling.network import Network, Prediction
from llm_influence.modeling.scoring import ItemScores
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.types import FloatArray, History, IntArray
from llm_influence.utils import write_text

ENSEMBLE = "ensemble.json"
FORMAT = 1
MOST_LOGITS = 2**27
"""Logits of validation in memory at most (float32: 512 MiB); more examples are thinned out."""


def checked_weights(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """One weight for each member; default: equal weights.

    Raises:
        ModelError: A weight is negative, their number is wrong, or their sum is not 1.
    """
    if weights is None:
        return (1 / members,) * members
    numbers = tuple(float(weight) for weight in weights)
    if len(numbers) != members or not min(numbers) >= 0 or not abs(sum(numbers) - 1) < 1e-6:
        expected = f"{members} numbers of at least 0 whose sum is 1"
        raise out_of_range(ModelError, "weights", list(numbers), expected=expected)
    return numbers


def check_members(members: Sequence[Network]) -> None:
    """Refuse models whose predictions cannot be averaged.

    Raises:
        ModelError: There is no model, or catalogues, behaviours or trained heads differ.
    """
    if not members:
        raise ModelError(
            "there is no model", where="ensemble", expected="models or folders", fix="name some"
        )
    first, *others = members
    for number, other in enumerate(others, start=2):
        one, two = (m.encoder.vocabulary for m in (first, other))
        differing = [
            what
            for what, same in (
                ("catalogue", one.catalogue.ids.equals(two.catalogue.ids)),
                ("behaviours", one.behaviors == two.behaviors),
                ("trained heads", _trained(first) == _trained(other)),
            )
            if not same
        ]
        if differing:
            raise ModelError(
                f"model {number} has another {' and other '.join(differing)} than model 1",
                where="ensemble",
                expected="equal item ids in the same order, equal behaviours, equal heads",
                fix="fine-tune all models on the same log, items and heads",
            )


def _trained(model: Network) -> tuple[object, ...]:
    config = model.config
    feedback = config.feedback_head.kind if model.feedback_head is not None else None
    return config.item_head.weight > 0, config.behavior_head.weight > 0, feedback


def fit_weights(logs: FloatArray, targets: IntArray) -> FloatArray:
    """The weights with the highest likelihood of the targets; the likelihood is concave in them.

    Args:
        logs: (M, N, I) logits of M members for N examples.
        targets: (N,) codes of the true classes.

    Returns:
        (M,) weights of at least 0 whose sum is 1.
    """
    members, rows = len(logs), np.arange(len(targets))
    own = logs[:, rows, targets]

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        mixed = np.tensordot(weights, logs, axes=1)
        value = (logsumexp(mixed, axis=1) - weights @ own).mean()
        slopes = np.einsum("mni,ni->m", logs, softmax(mixed, axis=1)) / len(rows) - own.mean(axis=1)
        return float(value), slopes.astype(np.float64)

    fitted = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-9},
    )
    weights = np.clip(fitted.x, 0, None)
    chosen: FloatArray = weights / weights.sum()
    return chosen


def thinned(rows: int, members: int, items: int) -> IntArray:
    """Evenly spaced numbers of examples, as many as fit `MOST_LOGITS`."""
    most = max(1, min(rows, MOST_LOGITS // (members * items)))
    return np.unique(np.linspace(0, rows - 1, most).astype(np.int64))


def write_ensemble(folder: Path, weights: Sequence[float]) -> list[Path]:
    """Write ``ensemble.json``; return the folder of each member."""
    names = [f"member_{number}" for number in range(len(weights))]
    described = {"format": FORMAT, "members": names, "weights": list(weights)}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ENSEMBLE, json.dumps(described, indent=2) + "\n")
    return [folder / name for name in names]


def read_ensemble(folder: Path) -> tuple[list[Path], list[float]]:
    """Folders and weights of the members.

    Raises:
        ModelFolderError: ``ensemble.json`` is damaged.
    """
    path = folder / ENSEMBLE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        names = [Path(name).name for name in described["members"]]
        return [folder / name for name in names], [float(w) for w in described["weights"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(
            ModelFolderError,
            path,
            error,
            expected="members and weights, as save_pretrained writes them",
            fix="save the ensemble again",
        ) from error


class Averaged(Network):
    """A network without states of its own: its query is the tuple of its members' queries.

    Attributes:
        members: The M models.
        weights: M weights of the members; their sum is 1.
    """

    members: nn.ModuleList
    weights: tuple[float, ...]

    @property
    def _networks(self) -> list[Any]:
        return list(self.members)

    def mix(self, values: Iterable[Tensor]) -> Tensor:
        """Weighted sum of one tensor from each member."""
        return torch.stack([w * v for w, v in zip(self.weights, values, strict=True)]).sum(dim=0)

    def mix_logs(self, logits: Iterable[Tensor]) -> Tensor:
        """(B, C) averaged log-probabilities, normalised, from (B, C) logits of each member."""
        return self.mix(one.log_softmax(dim=-1) for one in logits).log_softmax(dim=-1)

    def _of_members(
        self, query: Sequence[Any], value: Callable[[Any, Any], Tensor]
    ) -> list[Tensor]:
        return [value(member, own) for member, own in zip(self._networks, query, strict=True)]

    def read(self, histories: Sequence[History]) -> Any:  # noqa: ANN401
        """The queries of the members, each with its own rendering."""
        return tuple(member.read(histories) for member in self._networks)

    def training_logits(
        self, batch: EncodedBatch, places: Tensor, known: Tensor, gaps: Tensor | None
    ) -> Tensor:
        """Averaged log-probabilities; the members render histories alike (`check_teacher`)."""
        return self.mix_logs(m.training_logits(batch, places, known, gaps) for m in self._networks)

    def heads(self, query: Any, items: Tensor | None = None) -> Prediction:  # noqa: ANN401
        """Averaged log-probabilities as logits; the members compute their own item vectors."""
        both = [member.heads(own) for member, own in zip(self._networks, query, strict=True)]
        feedback = None if self.feedback_head is None else partial(self.feedback, query)
        item_logits = self.mix_logs(p.item_logits for p in both)
        return Prediction(item_logits, self.mix_logs(p.behavior_logits for p in both), feedback)

    def item_scores(self, query: Any) -> ItemScores:  # noqa: ANN401
        """Weighted sums of the members' logits: averaged log-probabilities but for a constant."""
        scores = [m.item_scores(own) for m, own in zip(self._networks, query, strict=True)]
        return ItemScores.mixed(scores, self.weights)

    def behavior_logits(self, query: Any) -> Tensor:  # noqa: ANN401
        """(B, behaviours) averaged log-probabilities."""
        return self.mix_logs(self._of_members(query, lambda m, own: m.behavior_logits(own)))

    def feedback(self, query: Any, items: Tensor, behaviors: Tensor) -> Tensor:  # noqa: ANN401
        """(B,) weighted mean of the members' feedback, see `Network.feedback`."""
        return self.mix(self._of_members(query, lambda m, own: m.feedback(own, items, behaviors)))

    def expected_feedback(
        self,
        query: Any,  # noqa: ANN401
        items: Tensor,
        behaviors: Tensor,
    ) -> Tensor | None:
        """(B,) weighted mean of the labels that the members expect; None for a binary label."""
        if self.config.feedback_head.kind == "binary":
            return None
        return self.mix(
            self._of_members(query, lambda m, own: m.expected_feedback(own, items, behaviors))
        )

    def embed(self, batch: EncodedBatch) -> Tensor:
        """Refused: the members have input vectors, states and gradients, the ensemble has none.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "an ensemble has no input vectors or states of its own",
            where="ensemble",
            expected="recommendations, evaluation, or an Explainer, which explains each member",
            fix="use one of its models, as in ensemble.members[0]",
        )

    def query_at(self, batch: EncodedBatch, *_: object, **__: object) -> Any:  # noqa: ANN401
        """Refused, see `embed`."""
        return self.embed(batch)

    def query(self, batch: EncodedBatch, *_: object, **__: object) -> Any:  # noqa: ANN401
        """Refused, see `embed`."""
        return self.embed(batch)

    def choose_weights(self, validation: EvaluationSet) -> tuple[float, ...]:
        """Set the weights with the highest likelihood of the true items; returns the weights.

        The likelihood is that of the whole catalogue. A large validation is thinned out evenly, so
        that the logits fit the memory. SciPy's SLSQP solves the concave problem on the simplex.

        Args:
            validation: Examples that were not in training, in the codes of the catalogue.

        Raises:
            ModelError: The members do not predict items, or there is no example.
        """
        if not len(validation) or not self.config.item_head.weight:
            raise ModelError(
                "there is no true item to predict",
                where="choose_weights",
                expected="examples, and members whose item head was trained",
                fix="set the weights by hand, or pass another validation",
            )
        rows = thinned(len(validation), len(self.members), self.num_items)
        histories = [validation.history(int(row)) for row in rows]
        logs = [
            torch.cat([p.item_logits.float().cpu() for _, p in member.predict(histories)]).numpy()
            for member in self._networks
        ]
        fitted = fit_weights(np.stack(logs), validation.target_items[rows])
        self.weights = checked_weights(fitted.tolist(), len(self.members))
        return self.weights

    def save_pretrained(self, folder: str | Path, *, with_backbone: bool = True) -> None:
        """Write ``ensemble.json`` and one model folder for each member."""
        for member, place in zip(
            self._networks, write_ensemble(Path(folder), self.weights), strict=True
        ):
            member.save_pretrained(place, with_backbone=with_backbone)
