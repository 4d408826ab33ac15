"""SASRec, BERT4Rec and eSASRec of RecTools, trained by RecTools itself.

SASRec and BERT4Rec have its softmax loss; eSASRec (arXiv 2508.06450) has its LiGR layers and its
softmax over sampled items. Two things are ours. After every epoch the torch model scores every
item for every history. And the full softmax is computed only where there is a target: the same
number, up to rounding, that RecTools gets by scoring padded positions too and leaving them out, in
a fraction of the time.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.base import TransformerModelBase
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.ligr import LiGRLayers
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.peers.ranking_task import Items, Scorer
from benchmarks.peers.trial import RankingTrial

MODELS = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel, "esasrec": SASRecModel}


def main() -> None:
    """Run one trial."""
    trial = RankingTrial()
    seed_everything(trial.seed)
    settings = dict(trial.settings)
    name = str(settings.pop("model"))
    if name == "esasrec":
        settings |= {"loss": "sampled_softmax", "transformer_layers_type": LiGRLayers}
    else:
        settings |= {"loss": "softmax", "lightning_module_type": WhereAsked}
    model = MODELS[name](**settings)
    scorer = make_scorer(model, trial.task.num_items)
    model._trainer = Trainer(  # RecTools' documented way to a trainer of one's own
        accelerator="cpu",
        max_epochs=trial.max_epochs,
        callbacks=[Validation(trial, scorer)],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    model.fit(dataset_of(trial.task.train))
    trial.finish(model.torch_model, scorer)


class WhereAsked(TransformerLightningModule):
    """RecTools' training step without the scores of positions that have no target."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy over all items, mean over the (B, L) positions with a target."""
        network, targets = self.torch_model, batch["y"]
        vectors = network.item_model.get_all_embeddings()
        states = network.encode_sessions(batch, vectors)[targets != 0]
        return cross_entropy(network.similarity_module(states, vectors), targets[targets != 0])


class Validation(Callback):
    """Stops the clock after every epoch, validates, and ends the training when told so."""

    def __init__(self, trial: RankingTrial, scorer: Scorer) -> None:
        self._trial = trial
        self._scorer = scorer

    def __deepcopy__(self, memo: dict[int, object]) -> Validation:
        """RecTools trains with a copy of its trainer; there is one trial to report to."""
        return self

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._trial.start_clock()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock and validate."""
        trainer.should_stop = self._trial.end_epoch(pl_module.torch_model, self._scorer)
        pl_module.train()


def dataset_of(histories: list[Items]) -> Dataset:
    """Training histories as RecTools wants them; the place in a history stands for the time."""
    lengths = [len(history) for history in histories]
    places = np.concatenate([np.arange(length) for length in lengths])
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: np.repeat(np.arange(len(histories)), lengths),
                Columns.Item: np.concatenate(histories),
                Columns.Weight: 1.0,
                Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(places, unit="s"),
            }
        )
    )


def make_scorer(model: TransformerModelBase, num_items: int) -> Scorer:
    """The model's scores of all items of the catalogue; items it never saw get -inf."""

    def scorer(histories: list[Items]) -> npt.NDArray[np.float32]:
        prepared, network = model.data_preparator, model.torch_model.eval()
        known = prepared.get_known_item_ids().astype(np.int64)
        code = np.zeros(num_items, dtype=np.int64)
        code[known] = prepared.get_known_items_sorted_internal_ids()
        sessions = [code[history[code[history] > 0]].tolist() for history in histories]
        batch = prepared._collate_fn_recommend([(session, [], {}) for session in sessions])
        with torch.inference_mode():
            vectors = network.item_model.get_all_embeddings()
            states = network.encode_sessions(batch, vectors)[:, -1]
            found = (states @ vectors.T).numpy()
        scores = np.full((len(histories), num_items), -np.inf, dtype=np.float32)
        scores[:, known] = found[:, code[known]]
        return scores

    return scorer


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main()
