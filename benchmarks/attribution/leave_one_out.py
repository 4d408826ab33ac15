"""Leave one out: the same values from Captum's `FeatureAblation` and from us, seconds of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.attribution import captum_peer
from benchmarks.attribution.case import Case
from benchmarks.attribution.shapley import Measured
from benchmarks.harness import Results, Row

METHOD = "leave_one_out"
EQUAL = 1e-4
"""Log-odds by which two computations of the same float32 value may differ."""


def measure(cases: Sequence[Case], token_budget: int, repeats: int, store: Results) -> Measured:
    """Rows and figures.

    Raises:
        SystemExit: The two do not give the same values.
    """
    size = len(cases[0].history)
    per_eval = _best_per_eval(cases[: min(4, len(cases))], token_budget, store)
    peer = [_peer(case, token_budget, per_eval, repeats, store) for case in cases]
    rows = [_row(f"captum FeatureAblation, {per_eval} masks a call", size, peer)]
    figures = {}
    for dtype, figure in (("float32", "loo_ratio"), ("bfloat16", "loo_ratio_bf16")):
        ours = [_ours(case, dtype, repeats, store) for case in cases]
        apart = [_apart(a, b) for a, b in zip(ours, peer, strict=True)]
        if dtype == "float32" and max(apart) > EQUAL:
            raise SystemExit(f"the values differ by {max(apart):.1e} log-odds")
        spread = statistics.median(float(np.std(record["scores"])) for record in peer)
        rows.append(
            _row(f"llm_influence {METHOD}, {dtype}", size, ours)
            | {"largest_difference": max(apart), "median_spread_of_scores": spread}
        )
        figures[figure] = _total(peer) / _total(ours)
        if dtype != "float32":
            figures[f"{figure}_error"] = max(apart)
    return rows, figures


def _best_per_eval(cases: Sequence[Case], token_budget: int, store: Results) -> int:
    """Captum's fastest `perturbations_per_eval`, tried on a few histories."""
    size = len(cases[0].history)
    choices = sorted({1, 5, 10, 25, size})
    seconds = {
        choice: _total([_peer(case, token_budget, choice, 1, store) for case in cases])
        for choice in choices
    }
    return min(seconds, key=seconds.__getitem__)


def _peer(case: Case, token_budget: int, per_eval: int, repeats: int, store: Results) -> Row:
    def explain() -> Row:
        taken = []
        for _ in range(repeats):
            function = case.function(token_budget)
            begun = time.perf_counter()
            scores = captum_peer.feature_ablation(function, per_eval)
            taken.append(time.perf_counter() - begun)
        return {
            "scores": scores.tolist(),
            "evaluations": function.evaluations,
            "seconds": min(taken),
        }

    key = f"{case.key} | captum FeatureAblation, {per_eval} masks a call, best of {repeats}"
    return store.keep(key, explain)


def _ours(case: Case, dtype: str, repeats: int, store: Results) -> Row:
    def explain() -> Row:
        found = [case.ours(METHOD, dtype=dtype)[0] for _ in range(repeats)]
        seconds = min(explained.seconds for explained in found)
        return {
            "scores": found[0].scores.tolist(),
            "evaluations": found[0].evaluations,
            "seconds": seconds,
        }

    return store.keep(f"{case.key} | {METHOD}, {dtype}, best of {repeats}", explain)


def _apart(one: Row, other: Row) -> float:
    return float(np.abs(np.array(one["scores"]) - np.array(other["scores"])).max())


def _total(records: Sequence[Row]) -> float:
    return sum(record["seconds"] for record in records)


def _row(system: str, size: int, records: Sequence[Row]) -> Row:
    return {
        "system": system,
        "task": f"leave one out, {size} events",
        "metric": "seconds a history, mean",
        "value": _total(records) / len(records),
        "evaluations": statistics.median(record["evaluations"] for record in records),
        "histories": len(records),
    }
