"""How good predictions of the next behaviour are."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from llm_influence.types import FloatArray, IntArray


def behavior_metrics(
    targets: IntArray, predicted: IntArray, log_probabilities: FloatArray
) -> dict[str, float]:
    """Accuracy, macro F1 and log loss.

    Args:
        targets: (N,) behaviour codes that came.
        predicted: (N,) the most likely ones.
        log_probabilities: (N,) of the targets, in nats.

    Returns:
        ``macro_f1`` is the plain mean of the F1 scores of all behaviours that came or were
        predicted.
    """
    return {
        "accuracy": float(np.mean(np.asarray(predicted) == targets)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "log_loss": float(-np.mean(log_probabilities)),
    }
