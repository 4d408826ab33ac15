"""Event dropout: what it costs on whole histories, what it gains on histories with events removed.

    python -m benchmarks.training.event_dropout [--output runs/event_dropout] [--rates 0 0.2 0.5]

Validation alone. Goes on where it was broken off: a finished run is not trained again. Writes
docs/benchmarks/event_dropout.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_benchmark
from benchmarks.training_runs import train
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.evaluation.metrics import ndcg_of_rows, seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.types import History

REMOVED = (0, 30, 50)
"""Per cent of the events of each history that are removed."""


def trained(options: argparse.Namespace, split: Split, rate: float) -> InfluenceModel:
    """The model of one rate, trained unless it is there."""
    folder = options.output / f"rate_{rate}"
    config = RunConfig.model_validate(
        {
            "output": str(folder),
            "model": {"layers": options.layers},
            "train": {
                "epochs": options.epochs,
                "event_dropout": rate,
                "event_dropout_share": options.share,
            },
        }
    )
    if not (folder / "model" / "model.json").exists():  # which is written last
        train(config, split).influence_model.save_pretrained(folder / "model")
    return InfluenceModel.from_pretrained(folder / "model")


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
    """(N,) NDCG@10 and (N,) log-odds of the true item, asked of thinned histories.

    Removed items stay out of the candidates: the question is the same whatever is removed.
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
    torch.set_num_threads(options.threads)
    data = RunConfig().data
    split = split_log(open_data(data), data.split)
    validation = split.validation
    rows, figures, plain = [], {}, {}
    for rate in options.rates:
        model = trained(options, split, rate)
        for percent in REMOVED:
            ndcg, odds = measured(model, validation, percent)
            plain.setdefault(percent, (ndcg, odds))
            for metric, values, first in zip(
                ("ndcg@10", "log_odds"), (ndcg, odds), plain[percent], strict=True
            ):
                low, high = bootstrap_interval(values - first, validation.users)
                row = {
                    "system": f"event dropout {rate}",
                    "task": f"next item, {percent}% of the events removed, validation",
                    "metric": metric,
                    "value": float(values.mean()),
                    "difference": float((values - first).mean()),
                    "low": low,
                    "high": high,
                }
                print(row)
                rows.append(row)
            figures[f"ndcg10_rate_{rate:g}_removed_{percent}"] = float(ndcg.mean())
            figures[f"log_odds_rate_{rate:g}_removed_{percent}"] = float(odds.mean())
    write_benchmark(
        options.write,
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/event_dropout"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/event_dropout.json"))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    main(parser.parse_args())
