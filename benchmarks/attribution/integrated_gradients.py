"""Integrated gradients: our adaptive rule against Captum's 50 steps, row by row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.attribution import captum_peer
from benchmarks.attribution.captum_peer import PathInputs
from benchmarks.attribution.case import Case, options_of
from benchmarks.attribution.shapley import Measured
from benchmarks.harness import Results, Row

METHOD, STEPS = "integrated_gradients", 50
SAME_BASE = 1e-3
"""Log-odds by which the target at the two systems' baselines may differ."""


def measure(cases: Sequence[Case], tolerance: float, repeats: int, store: Results) -> Measured:
    """Rows and figures.

    Raises:
        SystemExit: Our method has no tolerance, or the two do not walk from the same baseline.
    """
    if "tolerance" not in options_of(METHOD):
        raise SystemExit(f"method {METHOD!r} has no option 'tolerance'")
    size = len(cases[0].history)
    batch = _best_batch(cases[: min(4, len(cases))], store)
    peer = [_peer(case, batch, repeats, store) for case in cases]
    ours = [_ours(case, tolerance, repeats, store) for case in cases]
    apart = max(abs(a["base"] - b["base"]) for a, b in zip(ours, peer, strict=True))
    if apart > SAME_BASE:
        raise SystemExit(f"the target at the baselines differs by {apart:.1e} log-odds")
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(peer, ours, strict=True)]
    captum = f"captum LayerIntegratedGradients, {STEPS} steps, {batch} a batch"
    rows = [
        _row(captum, size, tolerance, peer),
        _row(f"llm_influence {METHOD}, tolerance {tolerance:g}", size, tolerance, ours),
        {
            "system": "llm_influence against captum",
            "task": f"integrated gradients, {size} events",
            "metric": "largest distance of scores / standard deviation, both within, median",
            "value": _agreement(peer, ours, tolerance),
        },
        *_not_converged(cases, ours, size),
    ]
    return rows, {"ig_ratio": statistics.median(ratios)}


def _best_batch(cases: Sequence[Case], store: Results) -> int:
    """Captum's fastest `internal_batch_size`, tried on a few histories."""
    seconds = {
        size: sum(_peer(case, size, 1, store)["seconds"] for case in cases)
        for size in (5, 10, 25, STEPS)
    }
    return min(seconds, key=seconds.__getitem__)


def _peer(case: Case, batch: int, repeats: int, store: Results) -> Row:
    """Captum's seconds without its check of convergence; the gap is ours to compute."""

    def explain() -> Row:
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            path = PathInputs(case.model, case.history, case.target, captum_peer.mean_baseline)
            scores, frame = captum_peer.integrated_gradients(
                path, steps=STEPS, internal_batch_size=batch
            )
            taken.append(time.perf_counter() - begun)
        with torch.no_grad():
            base, full = (float(path.value(ids)) for ids in (path.baselines, path.inputs))
        gap = abs(scores.sum() + frame - (full - base)) / abs(full - base)
        return {
            "scores": scores.tolist(),
            "seconds": min(taken),
            "gap": float(gap),
            "base": base,
            "evaluations": 2 * STEPS + 2,
        }

    return store.keep(f"{case.key} | captum, {batch} a batch, best of {repeats}", explain)


def _ours(case: Case, tolerance: float, repeats: int, store: Results) -> Row:
    def explain() -> Row:
        runs = [case.ours(METHOD, tolerance=tolerance, baseline="mean") for _ in range(repeats)]
        explained, found = runs[0]
        converged = True if found.converged is None else bool(found.converged[0])
        return {
            "scores": explained.scores.tolist(),
            "seconds": min(run.seconds for run, _ in runs),
            "gap": float(found.completeness_gaps()[0]),
            "base": float(found.base[0]),
            "evaluations": explained.evaluations,
            "converged": converged,
        }

    return store.keep(f"{case.key} | ours, tolerance {tolerance:g}, best of {repeats}", explain)


def _row(system: str, size: int, tolerance: float, records: Sequence[Row]) -> Row:
    gaps = [record["gap"] for record in records]
    return {
        "system": system,
        "task": f"integrated gradients, {size} events",
        "metric": "seconds a history, median",
        "value": statistics.median(record["seconds"] for record in records),
        "evaluations": statistics.median(record["evaluations"] for record in records),
        "completeness_gap": statistics.median(gaps),
        "largest_gap": max(gaps),
        "share_within": sum(gap <= tolerance for gap in gaps) / len(gaps),
        "histories": len(records),
    }


def _agreement(peer: Sequence[Row], ours: Sequence[Row], tolerance: float) -> float | None:
    """Median distance where both gaps are within the tolerance; None where there is no such row."""
    apart = [
        float(np.abs(np.array(a["scores"]) - np.array(b["scores"])).max() / np.std(a["scores"]))
        for a, b in zip(peer, ours, strict=True)
        if max(a["gap"], b["gap"]) <= tolerance
    ]
    return statistics.median(apart) if apart else None


def _not_converged(cases: Sequence[Case], ours: Sequence[Row], size: int) -> list[Row]:
    """A row for every history that our rule left above the tolerance, and says so."""
    return [
        {
            "system": f"llm_influence {METHOD}",
            "task": f"integrated gradients, {size} events",
            "metric": "completeness gap, not converged",
            "user": case.history.user_id,
            "value": record["gap"],
        }
        for case, record in zip(cases, ours, strict=True)
        if not record["converged"]
    ]
