"""Event dropout: its cost on whole histories and its gain on thinned ones: event_dropout.json.

    python -m benchmarks.training.event_dropout [--rates 0 0.2 0.5]

Validation only. A trained model in ``--work`` is not trained again.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.harness import arguments, started, write_benchmark
from benchmarks.training_runs import open_split, trained_once, with_interval
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.metrics import ndcg_of_rows, seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.types import History

REMOVED = (0, 30, 50)
"""Per cent of the events of each history that are removed."""
PARSER = arguments(
    __doc__,
    "event_dropout",
    threads=None,
    rates=[0.0, 0.2, 0.5],
    share=0.5,
    epochs=3.0,
    layers=(int, "of the backbone; default: all"),
    users=(int, "the first so many only, for a trial"),
)


def config_of(options: argparse.Namespace, rate: float) -> RunConfig:
    """The run of one rate."""
    dropout = {"event_dropout": rate, "event_dropout_share": options.share}
    return RunConfig.model_validate(
        {
            "output": str(options.work / f"rate_{rate}"),
            "model": {"layers": options.layers},
            "train": {"epochs": options.epochs, **dropout},
        }
    )


def thinned(history: History, percent: int, row: int) -> History:
    """The history without ``percent`` of its events, the same ones for every model."""
    size = len(history)
    order = np.random.default_rng([percent, row]).permutation(size)
    kept = np.ones(size, dtype=bool)
    kept[order[: round(size * percent / 100)]] = False
    return history.keep(kept)


def measured(
    model: InfluenceModel, rows: EvaluationSet, percent: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) NDCG@10 and (N,) log-odds of the true item after thinned histories.

    Removed items stay out of the candidates: the task is the same whatever is removed.
    """
    whole = [model.encoder.trim(rows.history(n)) for n in range(len(rows))]
    given = [thinned(history, percent, n) for n, history in enumerate(whole)]
    targets = torch.from_numpy(rows.target_items.astype(np.int64))
    ranks, odds = [], []
    for part, prediction in model.predict(given):
        logits = prediction.item_logits.float().cpu()
        codes = [rows.history(n).items for n in range(part.start, part.stop)]
        ranks.append(target_ranks(logits, targets[part], seen_items(codes)))
        odds.append(log_odds(logits.double(), targets[part]))
    return ndcg_of_rows(torch.cat(ranks).numpy()), torch.cat(odds).numpy()


def main(options: argparse.Namespace) -> None:
    """Train, measure and write."""
    split = open_split(RunConfig(), options.users)
    validation, rows, figures, plain = split.validation, [], {}, {}
    for rate in options.rates:
        model = trained_once(config_of(options, rate), split)
        for percent in REMOVED:
            values = dict(
                zip(("ndcg@10", "log_odds"), measured(model, validation, percent), strict=True)
            )
            first = plain.setdefault(percent, values)
            for metric, own in values.items():
                apart = with_interval(own - first[metric], validation.users, "difference")
                row = {
                    "system": f"event dropout {rate}",
                    "task": f"next item, {percent}% of the events removed, validation",
                    "metric": metric,
                    "value": float(own.mean()),
                    "difference": apart["difference"],
                    "low": apart["difference_low"],
                    "high": apart["difference_high"],
                }
                print(row)
                rows.append(row)
                name = metric.replace("@", "")
                figures[f"{name}_rate_{rate:g}_removed_{percent}"] = row["value"]
    write_benchmark(
        options.output,
        name="event_dropout",
        protocol={
            "data": "movielens_100k, leave one out",
            "measured": "validation, never test",
            "removed": "events drawn at random from the last 50, the rest rendered again; the same "
            "ones for every rate",
            "candidates": "all items but those of the whole history",
            "event_dropout_share": options.share,
            "difference": f"from rate {options.rates[0]:g}; low and high are its 95% interval, "
            "paired bootstrap over users",
            "epochs": options.epochs,
            "epoch": "chosen on whole histories",
            "layers": options.layers or "all",
        },
        rows=rows,
        figures=figures,
        seeds=[RunConfig().train.seed],
    )


if __name__ == "__main__":
    main(started(PARSER))
