"""shap's methods at their best setting on the function that we explain.

The background is one row of zeros: a feature that is not in a coalition is a removed event.
"""

from __future__ import annotations

import numpy as np
import shap

from benchmarks.attribution.masked_function import Floats, Function


def permutation(function: Function, evaluations: int, seed: int) -> Floats:
    """`PermutationExplainer`: a permutation there and back costs 2E + 1 masks, all in one call."""
    size = function.size
    explainer = shap.PermutationExplainer(_of(function), np.zeros((1, size)), seed=seed)
    one = 2 * size + 1
    evaluations = max(1, round(evaluations / one)) * one
    found = explainer(np.ones((1, size)), max_evals=evaluations, batch_size=one, silent=True)
    return np.asarray(found.values[0], dtype=np.float64)


def kernel(function: Function, evaluations: int, seed: int) -> Floats:
    """`KernelExplainer` without its selection of features, which would set most events to 0."""
    np.random.seed(seed)
    explainer = shap.KernelExplainer(_of(function), np.zeros((1, function.size)))
    samples = max(function.size + 2, evaluations - 2)
    found = explainer.shap_values(
        np.ones((1, function.size)), nsamples=samples, l1_reg=False, silent=True
    )
    return np.asarray(found[0], dtype=np.float64)


def _of(function: Function):  # noqa: ANN202
    return lambda rows: function(np.asarray(rows) > 0.5)
