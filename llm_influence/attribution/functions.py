"""Influence of the players of any function, by the methods that remove players."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_influence.attribution.methods import Method, make_method
from llm_influence.attribution.registry import Attribution, Perturbation, user_generator
from llm_influence.errors import ExplanationError, out_of_range
from llm_influence.types import BoolArray, FloatArray, IntArray

MaskFunction = Callable[[BoolArray], FloatArray]
"""From (M, n) masks, True where a player is present, to (M,) or (M, targets) values."""


@dataclass(frozen=True, slots=True, eq=False)
class FunctionInfluence:
    """Influence of n players on the values of a function.

    Attributes:
        values: (n,), or (targets, n) where the function returns several values a mask.
        standard_errors: The same shape, for methods that sample; else None. 0 where exact.
        base_value: The function without any player; (targets,) where there are several.
        full_value: The function with all players; likewise.
        evaluations: Masks that the function was evaluated on.
        converged: Whether sampling reached its tolerance, for all targets; None for other methods.
    """

    values: FloatArray
    standard_errors: FloatArray | None
    base_value: FloatArray | float
    full_value: FloatArray | float
    evaluations: int
    converged: bool | None = None


def explain_function(
    f: MaskFunction,
    players: int,
    method: str | Method = "shapley",
    *,
    evaluations: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    **options: object,
) -> FunctionInfluence:
    """Influence of the players of any function over masks, such as another model's prediction.

    Every mask is evaluated once, for all targets. A target gets the result that it would get alone.

    Args:
        f: From masks (M, n) bool, True where a player is present, to values (M,) or (M, targets).
        players: Number n of players.
        method: A perturbation method, by name or with its options: ``shapley``, ``exact_shapley``,
            ``permutation_shapley``, ``coarse_to_fine``, ``sparse_surrogate`` or ``leave_one_out``.
        evaluations: Most evaluations of ``f`` for a target; default: the method's own (200 for
            ``shapley``). Only for methods that sample.
        seed: Seed of random draws.
        batch_size: Most masks in one call of ``f``.
        options: Other options of a method that is given by name.

    Returns:
        Values, standard errors, the function at both ends and the evaluations spent.

    Raises:
        ExplanationError: An unknown method or option, a method that needs a model's gradients or
            attention, too few evaluations for so many players, or values of ``f`` that are not
            finite or not one row a mask.

    Example:
        >>> import numpy as np
        >>> result = explain_function(lambda masks: masks @ np.array([1.0, 2.0, 3.0]), 3)
        >>> result.values.round(6).tolist()
        [1.0, 2.0, 3.0]
    """
    if players < 1:
        raise out_of_range(ExplanationError, "players", players, expected="at least 1")
    if evaluations is not None:
        options["evaluations"] = evaluations
    chosen = make_method(method, options)
    if not isinstance(chosen, Perturbation):
        raise ExplanationError(
            f"method {chosen.name!r} needs a model, not a function",
            where="explain_function",
            expected="a method that removes players",
            fix="use 'shapley' or 'leave_one_out'",
        )
    values = _CachedFunction(f, players, batch_size)
    both = values(np.array([[False] * players, [True] * players]))
    targets = range(both.shape[1])
    results = [chosen.run(_OneGame(values, players, seed, target)) for target in targets]
    return _assembled(values, both, results)


def _assembled(
    function: _CachedFunction, ends: FloatArray, results: Sequence[Attribution]
) -> FunctionInfluence:
    """The results of all targets as one record."""
    shape = (-1,) if function.scalar else (len(results), -1)
    errors = [result.standard_errors[0] for result in results if result.standard_errors]
    converged = [result.converged[0] for result in results if result.converged is not None]
    base, full = ends
    return FunctionInfluence(
        values=np.stack([result.scores[0] for result in results]).reshape(shape),
        standard_errors=np.stack(errors).reshape(shape) if errors else None,
        base_value=float(base[0]) if function.scalar else base,
        full_value=float(full[0]) if function.scalar else full,
        evaluations=len(function.known),
        converged=all(map(bool, converged)) if converged else None,
    )


class _CachedFunction:
    """A function whose values are kept by mask.

    Attributes:
        known: (targets,) values by mask.
        scalar: Whether the function returns one value a mask, without an axis of targets.
    """

    def __init__(self, function: MaskFunction, players: int, batch_size: int) -> None:
        self._function, self._players, self._batch_size = function, players, batch_size
        self.known: dict[bytes, FloatArray] = {}
        self.scalar = True

    def __call__(self, masks: BoolArray) -> FloatArray:
        """(M, targets) values."""
        new = {mask.tobytes(): mask for mask in masks if mask.tobytes() not in self.known}
        rows = np.array(list(new.values()), dtype=bool).reshape(-1, self._players)
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            values = np.asarray(self._function(part.copy()), dtype=np.float64)
            if values.ndim not in (1, 2) or len(values) != len(part):
                raise ExplanationError(
                    f"the function returned shape {values.shape} for {len(part)} masks",
                    where="explain_function",
                    expected=f"({len(part)},) or ({len(part)}, targets)",
                    fix="return one row for each mask",
                )
            if not np.isfinite(values).all():
                raise ExplanationError(
                    "the function returned a value that is not finite",
                    where="explain_function",
                    expected="finite numbers, such as log-odds",
                    fix="return log-odds or probabilities instead of logarithms of 0",
                )
            self.scalar = values.ndim == 1
            keys = (mask.tobytes() for mask in part)
            self.known.update(zip(keys, values.reshape(len(part), -1), strict=True))
        return np.array([self.known[mask.tobytes()] for mask in masks])


class _OneGame:
    """One target of a function as the `Games` of a perturbation method, and as its values."""

    def __init__(self, function: _CachedFunction, players: int, seed: int, target: int) -> None:
        self._function, self._seed, self._target = function, seed, target
        self._counted: set[bytes] = set()
        self.sizes = [players]
        self.evaluations: IntArray = np.zeros(1, dtype=np.int64)

    @property
    def values(self) -> _OneGame:
        """Values of the coalitions; see `CoalitionValues`."""
        return self

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of the coalitions of the one game."""
        (rows,) = masks
        self._counted.update(mask.tobytes() for mask in rows)
        self.evaluations[0] = len(self._counted)
        return [self._function(rows)[:, self._target] if len(rows) else np.empty(0)]

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(1,) value without any player, and (1,) value with all."""
        (players,) = self.sizes
        (both,) = self([np.array([[False] * players, [True] * players])])
        return both[:1], both[1:]

    def generators(self) -> list[np.random.Generator]:
        """The seeded random generator of the game."""
        return [user_generator(self._seed, "function")]

    def label(self, row: int) -> str:
        """Name of the game in messages."""
        return f"function {row}"
