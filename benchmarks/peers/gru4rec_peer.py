"""GRU4Rec of Cornac, trained by Cornac itself on one session a user.

Only validation is ours: after every epoch its torch model scores every item for every history.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from cornac.data.dataset import SequentialDataset
from cornac.models import GRU4Rec
from cornac.models.gru4rec import recom_gru4rec
from torch import Tensor

from benchmarks.peers.ranking_task import Items, Scorer
from benchmarks.peers.trial import RankingTrial


def main() -> None:
    """Run one trial."""
    trial = RankingTrial()
    torch.manual_seed(trial.seed)
    train = dataset_of(trial.task.train)
    settings = dict(trial.settings)
    width = int(str(settings.pop("width")))
    model = GRU4Rec(layers=[width], n_epochs=trial.max_epochs, seed=trial.seed, **settings)
    scorer = make_scorer(model, trial.task.num_items)
    recom_gru4rec.trange = lambda *_, **__: Epochs(trial, model, scorer)
    model.fit(train)
    trial.finish(model.model, scorer)


class Epochs:
    """Stands in for Cornac's progress bar, the one place where it tells that an epoch is over."""

    def __init__(self, trial: RankingTrial, model: GRU4Rec, scorer: Scorer) -> None:
        self._trial, self._model, self._scorer = trial, model, scorer

    def __iter__(self) -> Iterator[int]:
        """Numbers of epochs, until the trial has enough."""
        for epoch in range(1, self._trial.max_epochs + 1):
            self._model.model.train()
            self._trial.start_clock()
            yield epoch
            if self._trial.end_epoch(self._model.model, self._scorer):
                return

    def set_postfix(self, **_: object) -> None:
        """Cornac shows its loss here; nobody is looking."""


def dataset_of(histories: list[Items]) -> SequentialDataset:
    """Training histories as Cornac wants them: (user, session, item, place in the history)."""
    return SequentialDataset.build(
        [
            (user, user, int(item), place)
            for user, history in enumerate(histories)
            for place, item in enumerate(history)
        ],
        fmt="USIT",
    )


def make_scorer(model: GRU4Rec, num_items: int) -> Scorer:
    """The model's scores of all items of the catalogue; items it never saw get -inf.

    The same steps as Cornac's own `score`, for many histories at a time.
    """

    def scorer(histories: list[Items]) -> npt.NDArray[np.float32]:
        code = np.full(num_items, -1)
        known = np.array(list(model.train_set.iid_map))
        code[known] = list(model.train_set.iid_map.values())
        sessions = [code[history[code[history] >= 0]] for history in histories]
        with torch.inference_mode():
            network = model.model.eval()
            _, vectors, biases = network.embed(torch.zeros(1, dtype=torch.long), None)
            found = network.score_items(_last_states(model, sessions), vectors, biases).numpy()
        scores = np.full((len(histories), num_items), -np.inf, dtype=np.float32)
        scores[:, known] = found[:, code[known]]
        return scores

    return scorer


def _last_states(model: GRU4Rec, sessions: list[Items]) -> Tensor:
    """(B, H) hidden states after the last event; sessions end together and start one by one."""
    longest = max(len(session) for session in sessions)
    padded = torch.zeros(len(sessions), longest, dtype=torch.long)
    started = torch.zeros(len(sessions), longest, 1)
    for row, session in enumerate(sessions):
        padded[row, longest - len(session) :] = torch.from_numpy(session)
        started[row, longest - len(session) :] = 1
    hidden = [torch.zeros(len(sessions), width) for width in model.layers]
    for step in range(longest):
        inputs, _, _ = model.model.embed(padded[:, step], hidden)
        model.model.hidden_step(inputs, hidden)
        hidden = [state * started[:, step] for state in hidden]
    return hidden[-1]


if __name__ == "__main__":
    main()
