"""RecBole's Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978) with ratings in the history.

RecBole's DIN reads items and their features alone. So that it sees how films were rated, an "item"
is a film with a rating: features are the film, the rating and the genres; the candidate is the film
with rating 0. Network, embedding layer and loss are RecBole's own; batches and validation are ours,
because RecBole writes a copy of the history for every question.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import DIN
from torch import Tensor

from benchmarks.peers.feedback_task import Examples, Floats, Ints, Task
from benchmarks.peers.trial import FeedbackTrial, fit

LEVELS = 6
"""Ratings 1 to 5, and 0 for the candidate."""
SCORED_AT_ONCE = 1024


def main() -> None:
    """Run one trial."""
    trial = FeedbackTrial()
    torch.manual_seed(trial.seed)
    torch.set_num_threads(1)
    network, item_codes = make_network(trial.task, trial.settings)
    examples = Reader(trial.task, item_codes, int(str(trial.settings["history"])))
    train, batch = trial.task.parts["train"], int(str(trial.settings["batch_size"]))

    def losses() -> Iterator[Tensor]:
        for rows in torch.randperm(len(train.labels)).split(batch):
            if len(rows) > 1:  # RecBole's layers normalise over the batch
                yield network.calculate_loss(examples.read(train, rows.numpy()))

    def scorer(asked: Examples) -> Floats:
        with torch.inference_mode():
            rows = np.arange(len(asked.labels))
            parts = np.array_split(rows, -(-len(rows) // SCORED_AT_ONCE))
            return np.concatenate([_log_odds(network, examples.read(asked, p)) for p in parts])

    fit(trial, network, losses, scorer)


class Reader:
    """Examples as RecBole's interactions.

    Args:
        task: The task.
        item_codes: (I * LEVELS,) RecBole's code of film i with rating r at ``i * LEVELS + r``.
        history: At most so many events, the last ones.
    """

    def __init__(self, task: Task, item_codes: Ints, history: int) -> None:
        films = task.items * LEVELS
        self._seen = torch.from_numpy(item_codes[films + task.ratings.astype(np.int64)])
        self._asked = torch.from_numpy(item_codes[films])
        self._history = history

    def read(self, examples: Examples, rows: Ints) -> Interaction:
        """The examples at ``rows``, histories filled up with 0 at the end."""
        events = torch.from_numpy(examples.events[rows])
        lengths = torch.from_numpy(examples.positions[rows]).clamp(max=self._history)
        places = torch.arange(self._history)
        seen = self._seen[
            (events[:, None] - lengths[:, None] + places).clamp(max=len(self._seen) - 1)
        ]
        return Interaction(
            {
                "user_id": torch.ones(len(rows), dtype=torch.long),  # DIN does not look at the user
                "item_id": self._asked[events],
                "item_id_list": torch.where(places < lengths[:, None], seen, 0),
                "item_length": lengths,
                "label": torch.from_numpy(examples.labels[rows].astype(np.float32)),
            }
        )


def make_network(task: Task, settings: dict[str, object]) -> tuple[DIN, Ints]:
    """RecBole's DIN, and its code of every film and rating."""
    width = int(str(settings["mlp"]))
    with tempfile.TemporaryDirectory() as folder:
        write_atomic_files(task, Path(folder) / "likes", genres=bool(settings["genres"]))
        config = Config(
            model="DIN",
            dataset="likes",
            config_dict={
                "data_path": folder,
                "load_col": None,
                "LABEL_FIELD": "label",
                "embedding_size": settings["embedding_size"],
                "mlp_hidden_size": [width, width],
                "dropout_prob": settings["dropout"],
                "MAX_ITEM_LIST_LENGTH": settings["history"],
                "train_neg_sample_args": None,
                "use_gpu": False,
            },
        )
        dataset: Dataset = create_dataset(config)
        dataset._change_feat_format()  # its `build` does so too, but writes all histories out first
    names = [str(code) for code in range(task.num_items * LEVELS)]
    return DIN(config, dataset), dataset.token2id("item_id", names).astype(np.int64)


def write_atomic_files(task: Task, folder: Path, *, genres: bool) -> None:
    """The films, each with each rating, in RecBole's format; and one row of a log."""
    folder.mkdir()
    lines = ["item_id:token\tfilm:token\trating:token" + ("\tgenres:token_seq" if genres else "")]
    for code in range(task.num_items * LEVELS):
        film, rating = divmod(code, LEVELS)
        cells = [f"{code}", f"f{film}", f"r{rating}"]
        if genres:
            cells.append(" ".join(f"g{number}" for number in np.flatnonzero(task.genres[film])))
        lines.append("\t".join(cells))
    (folder / "likes.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log = "user_id:token\titem_id:token\ttimestamp:float\tlabel:float\nu\t0\t0\t1\n"
    (folder / "likes.inter").write_text(log, encoding="utf-8")


def _log_odds(network: DIN, asked: Interaction) -> Floats:
    columns = (asked["user_id"], asked["item_id_list"], asked["item_length"], asked["item_id"])
    return network(*columns).double().numpy()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main()
