"""Gradient-boosted trees of scikit-learn on hand features; an epoch is twenty trees.

All trees are grown in one go, validation then says after which of them to stop.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.peers.feedback_task import Examples, Floats
from benchmarks.peers.tree_features import categorical, table
from benchmarks.peers.trial import FeedbackTrial

TREES, AN_EPOCH = 1000, 20


def main() -> None:
    """Run one trial."""
    trial = FeedbackTrial()
    settings = dict(trial.settings)
    trial.start_clock()
    names, values = table(trial.task, str(settings.pop("item_statistics")))
    train = trial.task.parts["train"]
    model = HistGradientBoostingClassifier(
        max_iter=TREES,
        early_stopping=False,
        categorical_features=categorical(names),
        random_state=trial.seed,
        **settings,
    ).fit(values[train.events], train.labels)
    epochs = np.arange(AN_EPOCH, TREES + 1, AN_EPOCH)
    best = trial.end_epochs(_log_odds(model, values, trial.task.parts["validation"], epochs))
    chosen = epochs[best : best + 1]
    trial.finish(lambda asked: next(_log_odds(model, values, asked, chosen)), int(chosen[0]))


def _log_odds(
    model: HistGradientBoostingClassifier, values: Floats, asked: Examples, trees: Floats
) -> Iterator[Floats]:
    """(N,) log-odds of the examples by the first so many trees, for each such number."""
    staged = model.staged_decision_function(values[asked.events])
    for number, scores in enumerate(staged, start=1):
        if number in trees:
            yield np.asarray(scores).ravel()


if __name__ == "__main__":
    main()
