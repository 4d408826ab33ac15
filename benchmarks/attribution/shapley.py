"""Shapley values: error at equal evaluations, and seconds to equal error."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.attribution import captum_peer, shap_peer
from benchmarks.attribution.case import Case, Explained, options_of
from benchmarks.attribution.masked_function import Function, TableFunction
from benchmarks.attribution.truth import coalition_table, long_estimate, relative_rmse
from benchmarks.harness import Results, Row
from benchmarks.statistics import median_interval
from llm_influence.numerics import exact_shapley

PEERS = {
    "captum ShapleyValueSampling": captum_peer.shapley_sampling,
    "captum KernelShap": captum_peer.kernel_shap,
    "shap PermutationExplainer": shap_peer.permutation,
    "shap KernelExplainer": shap_peer.kernel,
}
OURS = "llm_influence shapley"
SYSTEMS = (OURS, *PEERS)
STEPS = 3
"""Halvings of the search: budgets are known to a factor of 2^(1/8)."""

Measured = tuple[list[Row], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the measurement of Shapley values needs to know.

    Attributes:
        cases: Histories of equal length.
        pilot: The first so many of them choose budgets; all are measured.
        token_budget: Of the peers' function.
        seeds: Seeds; each history is explained once with each when errors are measured.
        tolerance: The relative RMSE to reach.
        most_evaluations: A peer that needs more is said not to have reached it.
        reference_evaluations: Of the long reference; 0: exact values.
    """

    cases: Sequence[Case]
    pilot: int
    token_budget: int
    seeds: Sequence[int]
    tolerance: float
    most_evaluations: int
    reference_evaluations: int


def measure(setting: Setting, store: Results, *, evaluations: int | None) -> Measured:
    """Rows and figures; ``evaluations``: also compare the errors at so many evaluations."""
    if not options_of("shapley") >= {"evaluations", "tolerance"}:
        raise SystemExit("method 'shapley' has no options 'evaluations' and 'tolerance'")
    trials = Trials(setting, store)
    size = len(setting.cases[0].history)
    rows, figures = _reference_rows(size, trials.truths), {}
    if evaluations is not None:
        found = {system: trials.errors(system, evaluations) for system in SYSTEMS}
        rows += [_error_row(system, size, evaluations, found[system]) for system in SYSTEMS]
        medians = {system: _median(found[system], "error") for system in SYSTEMS}
        best = min(medians[peer] for peer in PEERS)
        figures[f"shapley_error_ratio_{evaluations}"] = medians[OURS] / best
    timed = {system: trials.to_tolerance(system) for system in SYSTEMS}
    tried = {system: timed[system] or trials.largest(system) for system in SYSTEMS}
    rows += [
        _seconds_row(system, size, setting, tried[system], reached=timed[system] is not None)
        for system in SYSTEMS
    ]
    if timed[OURS]:
        # a peer that was stopped before it came within the tolerance would have taken longer
        fastest = min(PEERS, key=lambda peer: _median(tried[peer], "seconds"))
        ratio = _median(tried[fastest], "seconds") / _median(timed[OURS], "seconds")
        figures[f"shapley_seconds_ratio_{size}"] = ratio
        figures[f"shapley_seconds_ratio_{size}_is_a_lower_bound"] = float(not timed[fastest])
    return rows, figures


class Trials:
    """Explanations by every system, with their errors, evaluations and seconds.

    Args:
        setting: What is measured.
        store: Keeps every explanation.

    Attributes:
        truths: A record for each case: ``scores``; ``table`` if exact; ``error`` if long.
    """

    def __init__(self, setting: Setting, store: Results) -> None:
        self._setting, self._store = setting, store
        self.truths = [self._truth(case) for case in setting.cases]

    def errors(self, system: str, evaluations: int, cases: int | None = None) -> list[Row]:
        """A record for each of the first ``cases`` histories and each seed; from tables if any."""
        return self._explained(system, evaluations, cases, timed=False)

    def to_tolerance(self, system: str) -> list[Row] | None:
        """Rows of all histories, timed, at about the fewest evaluations within the tolerance.

        The pilot's budget is raised until the median error of all is within. None: out of reach.
        """
        setting = self._setting

        def enough(evaluations: int) -> bool:
            found = self.errors(system, evaluations, setting.pilot)
            return _median(found, "error") <= setting.tolerance

        first = 2 * len(setting.cases[0].history) + 2
        budget = smallest(enough, first=first, most=setting.most_evaluations)
        while budget is not None and budget <= setting.most_evaluations:
            found = self._explained(system, budget, None, timed=True)
            if _median(found, "error") <= setting.tolerance:
                return found
            budget = round(budget * 2**0.25)
        return None

    def largest(self, system: str) -> list[Row]:
        """Rows of the pilot at the largest budget that was tried of a system out of reach."""
        budget = 2 * len(self._setting.cases[0].history) + 2
        while 2 * budget <= self._setting.most_evaluations:
            budget *= 2
        return self.errors(system, budget, self._setting.pilot)

    def _truth(self, case: Case) -> Row:
        setting, function = self._setting, case.function(self._setting.token_budget)
        budget = setting.reference_evaluations

        def find() -> Row:
            if not budget:
                table = coalition_table(function)
                return {"scores": exact_shapley(table).tolist(), "table": table.tolist()}
            found = long_estimate(case, budget, setting.seeds[0])
            return {"scores": found.scores.tolist(), "error": found.error}

        return self._store.keep(f"{case.key} | truth, {budget or 'exact'}", find)

    def _explained(
        self, system: str, evaluations: int, cases: int | None, *, timed: bool
    ) -> list[Row]:
        pairs = list(zip(self._setting.cases, self.truths, strict=True))[:cases]
        return [
            self._one(system, case, truth, evaluations, seed, timed=timed)
            for case, truth in pairs
            for seed in self._setting.seeds
        ]

    def _one(
        self, system: str, case: Case, truth: Row, evaluations: int, seed: int, *, timed: bool
    ) -> Row:
        by_table = "table" in truth and not timed and system != OURS

        def explain() -> Row:
            if system == OURS:
                found = case.ours("shapley", seed=seed, evaluations=evaluations, tolerance=0.0)[0]
            elif by_table:
                found = _peer(system, TableFunction(np.array(truth["table"])), evaluations, seed)
            else:
                function = case.function(self._setting.token_budget)
                found = _peer(system, function, evaluations, seed)
            error = relative_rmse(found.scores, np.array(truth["scores"]))
            error = max(error**2 - truth.get("error", 0.0) ** 2, 0.0) ** 0.5  # without the truth's
            return {"error": error, "evaluations": found.evaluations, "seconds": found.seconds}

        place = "from the table" if by_table else "by the model"
        return self._store.keep(
            f"{case.key} | {system} | {evaluations} evaluations, seed {seed}, {place}", explain
        )


def warm(case: Case) -> None:
    """Do once what a first call alone costs: compilers of peers, probes of the model by us."""
    for peer in PEERS.values():
        peer(TableFunction(np.arange(16.0)), 40, 0)
    case.ours("leave_one_out")


def _peer(system: str, function: Function, evaluations: int, seed: int) -> Explained:
    """One explanation with the evaluations and the seconds it really took."""
    begun = time.perf_counter()
    scores = PEERS[system](function, evaluations, seed)
    return Explained(scores, function.evaluations, time.perf_counter() - begun)


def smallest(enough: Callable[[int], bool], *, first: int, most: int) -> int | None:
    """About the smallest number from ``first`` to ``most`` that is enough, or None.

    Numbers double until one will do, then the gap is halved on a logarithmic scale.
    """
    high = first
    while not enough(high):
        high *= 2
        if high > most:
            return None
    low = high // 2
    for _ in range(STEPS if high > first else 0):
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _median(records: Sequence[Mapping[str, object]], column: str) -> float:
    return statistics.median(record[column] for record in records)


def _error_row(system: str, size: int, evaluations: int, records: Sequence[Row]) -> Row:
    return {
        "system": system,
        "task": f"Shapley values of {size} events, {evaluations} evaluations",
        "metric": "relative RMSE, median",
        **_spread(records, "error"),
        "evaluations": _median(records, "evaluations"),
    }


def _seconds_row(
    system: str, size: int, setting: Setting, records: Sequence[Row], *, reached: bool
) -> Row:
    return {
        "system": system,
        "task": f"Shapley values of {size} events to relative RMSE {setting.tolerance:g}",
        "metric": "seconds a history, median",
        "reached": reached,
        **_spread(records, "seconds"),
        "error": _median(records, "error"),
        "evaluations": _median(records, "evaluations"),
    }


def _spread(records: Sequence[Row], column: str) -> Row:
    """Median with its 95% interval over explanations drawn with replacement."""
    value, low, high = median_interval([record[column] for record in records])
    return {"value": value, "low": low, "high": high, "explanations": len(records)}


def _reference_rows(size: int, truths: Sequence[Row]) -> list[Row]:
    """How far the long reference may be wrong; nothing where the values are exact."""
    if "error" not in truths[0]:
        return []
    return [
        {
            "system": "reference, unbiased",
            "task": f"Shapley values of {size} events",
            "metric": "relative standard error, median",
            "value": _median(truths, "error"),
        }
    ]
