"""Peers that are solved instead of trained: EASE and the linear transition model.

Both are a matrix B of items times items. A history is a vector x of its items, and its scores are
x B. EASE (Steck 2019, arXiv:1905.03375) reads a set of items. The linear model
(`llm_influence.modeling.transitions`) reads and predicts in order, with weights that decay by
events; every decay at reading is tried on each solution.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from benchmarks.peer_runs import Bench, Budget, Settings, read_result, save_column, save_result
from benchmarks.peers.metrics import ndcg
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split
from llm_influence.evaluation.metrics import evaluate
from llm_influence.modeling.transitions import (
    READ_DECAYS,
    LinearSetting,
    decayed_histories,
    item_codes,
    linear_transitions,
)
from llm_influence.types import History


@dataclass(frozen=True)
class ItemMatrix:
    """Scores of all items as a sum of rows of a matrix.

    Attributes:
        name: Of the system.
        matrix: (I, I), from items of the history to scores.
        trained: (I,) whether an item has a training event; the others come last.
        decay: Events until the weight of an event falls to 1/e; None: a set of items.
    """

    name: str
    matrix: Tensor
    trained: Tensor
    decay: float | None = None

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) scores."""
        codes = [history.items.astype(np.int64) for history in histories]
        if self.decay is None:
            codes = [np.unique(items) for items in codes]
        read = decayed_histories(codes, len(self.matrix), self.decay or np.inf)
        scores = torch.from_numpy(read @ self.matrix.numpy())
        return scores.masked_fill(~self.trained, -torch.inf)


def ease(train: BehaviorLog, ridge: float) -> Tensor:
    """(I, I) weights of EASE, from the users' sets of items."""
    pairs = np.unique(np.stack([train.rows_of_users(), train.items]), axis=1)
    shape = (len(train), len(train.catalogue))
    sets = csr_array((np.ones(pairs.shape[1], np.float32), tuple(pairs)), shape=shape)
    gram = torch.from_numpy((sets.T @ sets).toarray())
    gram.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return (-inverse / inverse.diagonal()).fill_diagonal_(0)


def linear(train: BehaviorLog, **setting: float) -> Tensor:
    """(I, I) weights of the linear transition model."""
    items = len(train.catalogue)
    return torch.from_numpy(linear_transitions(item_codes(train), items, LinearSetting(**setting)))


SOLVERS = {"ease": ease, "linear": linear}


def tune(bench: Bench, system: str, points: Iterable[Settings], budget: Budget) -> Settings:
    """Try settings on validation until the seconds are spent; the best one.

    A solution takes seconds, so the number of trials is not limited.
    """
    split, tried, spent = bench.split(), [], 0.0
    for number, settings in enumerate(points):
        if spent >= budget.tuning_seconds:
            break
        folder = bench.folder / system / f"trial_{number:03d}"
        if not _is_done(folder, settings):
            models, seconds = _solved(system, split, settings)
            decay, quality = max(
                ((model.decay, _ndcg(model, split.validation)) for model in models),
                key=lambda found: found[1],
            )
            chosen = settings if decay is None else {**settings, "read_decay": decay}
            save_result(folder, _record(chosen, seconds, quality))
        result = read_result(folder / "result.json")
        spent += result["train_seconds"]
        print(f"{system} {folder.name}: {json.dumps(result)}", flush=True)
        tried.append(result)
    return max(tried, key=lambda result: result[f"validation_{bench.metric}"])["settings"]


def solve(bench: Bench, system: str, settings: Settings) -> None:
    """Solve the chosen setting, and rank validation and test."""
    folder, split = bench.folder / system / "seed_0", bench.split()
    if _is_done(folder, settings):
        return
    models, seconds = _solved(system, split, _without_reading(settings))
    (model,) = (one for one in models if one.decay == settings.get("read_decay"))
    for part in ("validation", "test"):
        metrics, ranks = evaluate(model, getattr(split, part), EvaluationConfig())
        save_column(folder, f"{part}_ranks", ranks.astype(np.int64))
        print(system, part, metrics, flush=True)
    quality = ndcg(np.load(folder / "validation_ranks.npy"))
    epoch = {"epoch": 1, "train_seconds": seconds, bench.metric: quality}
    timed = {"train_seconds_to_best": seconds, "epochs": [epoch]}
    save_result(folder, {**_record(settings, seconds, quality), **timed})


def _is_done(folder: Path, settings: Settings) -> bool:
    """Whether a folder has a result of these settings, whatever the decay at reading of a trial."""
    path = folder / "result.json"
    if not path.exists():
        return False
    known = read_result(path)["settings"]
    return settings in (known, _without_reading(known))


def _without_reading(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name != "read_decay"}


def _solved(system: str, split: Split, settings: Settings) -> tuple[list[ItemMatrix], float]:
    """The model with every decay at reading, and seconds of the processor."""
    begun = time.process_time()
    matrix = SOLVERS[system](split.train, **settings).contiguous()
    seconds = time.process_time() - begun
    items = torch.from_numpy(split.train.items.astype(np.int64))
    trained = torch.bincount(items, minlength=len(matrix)) > 0
    decays = (None,) if system == "ease" else READ_DECAYS
    return [ItemMatrix(system, matrix, trained, decay) for decay in decays], seconds


def _ndcg(model: ItemMatrix, rows: EvaluationSet) -> float:
    return evaluate(model, rows, EvaluationConfig())[0]["ndcg@10"]


def _record(settings: Settings, seconds: float, quality: float) -> Settings:
    quality_of = {"validation_ndcg@10": quality}
    return {"settings": settings, "seed": 0, "train_seconds": seconds, **quality_of}
