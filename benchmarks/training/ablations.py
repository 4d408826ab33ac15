"""The effect of each part of the shipped configuration: docs/benchmarks/ablations.json.

    python -m benchmarks.training.ablations [--core 0] [--epochs 2] [--only "baseline;score dot"]

Every row is configs/movielens_100k.yaml with one change, trained for ``--epochs`` and measured on
validation; the test split is never used. An epoch takes about half a minute on one core. Settings
that need longer training than others are at a disadvantage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import (
    Row,
    arguments,
    results_of,
    selection,
    started,
    write_benchmark,
)
from benchmarks.training_runs import MOVIELENS, measure_on_validation, open_split, with_interval
from llm_influence.config.run import RunConfig
from llm_influence.evaluation.metrics import ndcg_of_rows, protocol, ranking_metrics
from llm_influence.modeling.model import InfluenceModel
from llm_influence.utils import write_text

BASELINE = "baseline"
PARSER = arguments(
    __doc__,
    "ablations",
    epochs=2.0,
    only=(str, "names of settings, with semicolons between; default: all"),
    users=(int, "the first so many only, for a trial"),
)

SETTINGS: dict[str, list[str]] = {
    BASELINE: [],
    "item texts off": [],  # see `CHANGES`
    "item residuals off": [],
    "item residuals of rank 8": ["model.item_head.residual_rank=8"],
    "item residuals of rank 32": ["model.item_head.residual_rank=32"],
    "residual dropout 0.5": ["model.residual_dropout=0.5"],
    "score dot": ["model.item_head.score=dot"],
    "temperature 0.03": ["model.item_head.temperature=0.03"],
    "temperature 0.07": ["model.item_head.temperature=0.07"],
    "label smoothing 0.1": ["train.label_smoothing=0.1"],
    "loss sampled": ["model.item_head.loss=sampled"],
    "loss gbce": ["model.item_head.loss=gbce"],
    "behaviour head off": ["model.behavior_head.weight=0"],
    "template item": ["rendering.template=item"],
    "template item_value": ["rendering.template=item_value"],
    "template full": ["rendering.template=full"],
    "template compact": ["rendering.template=compact"],
    "gap not added": [],  # templates of `TEMPLATES`
    "gap added alone": [],
    "10 events": ["rendering.max_events=10"],
    "50 events": ["rendering.max_events=50"],
    "100 events": ["rendering.max_events=100"],
    "LoRA rank 4": ["model.adapter.rank=4", "model.adapter.alpha=8"],
    "LoRA rank 64": ["model.adapter.rank=64", "model.adapter.alpha=128"],
    "backbone frozen": ["model.adapter={kind: frozen}"],
    "layers 1": ["model.layers=1"],
    "layers 2": ["model.layers=2"],
    "layers 6": ["model.layers=6"],
    "dropout 0.2": ["model.dropout=0.2"],
    "dropout 0.3": ["model.dropout=0.3"],
    "event dropout 0.2": ["train.event_dropout=0.2"],
    "event dropout 0.5": ["train.event_dropout=0.5"],
    "batch 32": ["train.batch_size=32"],
    "batch 64": ["train.batch_size=64"],
    "pretraining causal": ["pretraining={objective: causal, epochs: 2}"],
    "seed 1": ["train.seed=1"],
}
"""What is changed. ``seed 1`` changes nothing that matters: its difference is chance."""

TEMPLATES = {
    "gap not added": {"name": "no_gap", "event": "{item}", "added": ["behavior", "value"]},
    "gap added alone": {"name": "gap_alone", "event": "{item}", "added": ["gap"]},
}


def without_texts(model: InfluenceModel) -> None:
    """Give items fixed random directions instead of those of their texts."""
    words, first = model.embeddings.words, model.first_item
    draw = torch.Generator().manual_seed(0)
    random = torch.randn(words[first:].shape, generator=draw)
    words[first:] = F.normalize(random, dim=-1)


def without_residuals(model: InfluenceModel) -> None:
    """Keep the learned residuals of items at zero; those of the template's words stay."""
    first = model.first_item

    def stop(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[first:] = 0
        return gradient

    model.embeddings.residual.register_hook(stop)


CHANGES: dict[str, Callable[[InfluenceModel], None]] = {
    "item texts off": without_texts,
    "item residuals off": without_residuals,
}
"""Changes that no configuration can name."""


def config_of(name: str, options: argparse.Namespace) -> RunConfig:
    """The run of one setting."""
    words = [f"--{word}" for word in SETTINGS[name]]
    if name in TEMPLATES:
        path = options.work / f"{TEMPLATES[name]['name']}.yaml"
        write_text(path, json.dumps(TEMPLATES[name]))  # JSON is YAML
        words.append(f"--rendering.template={path}")
    usual = [f"--output={options.work / 'run'}", f"--train.epochs={options.epochs}"]
    return RunConfig.load(MOVIELENS, [*usual, *words])


def row_of(name: str, measured: dict, baseline: dict, users: np.ndarray) -> Row:
    """A setting's values, and its differences from the baseline."""
    ndcg, nll = ndcg_of_rows(np.array(measured["ranks"])), np.array(measured["nll"])
    row: Row = {
        "system": name,
        "task": "next item, validation",
        "changed": "; ".join(SETTINGS[name]) or name,
        "metric": "ndcg@10",
        **with_interval(ndcg, users),
        "hr@10": ranking_metrics(np.array(measured["ranks"]))["hr@10"],
        "nll": float(nll.mean()),
        "seconds": measured["seconds"],
    }
    if name != BASELINE:
        first = ndcg_of_rows(np.array(baseline["ranks"]))
        row |= with_interval(ndcg - first, users, "ndcg_difference")
        row |= with_interval(nll - np.array(baseline["nll"]), users, "nll_difference")
    return row


def main(options: argparse.Namespace) -> None:
    """Measure the settings that have no result yet, then write all that have one."""
    config = config_of(BASELINE, options)
    split = open_split(config, options.users)
    results = results_of(options, epochs=options.epochs, users=options.users)
    for name in dict.fromkeys([BASELINE, *selection(options.only, list(SETTINGS))]):
        results.keep(
            name,
            lambda name=name: measure_on_validation(
                config_of(name, options), split, CHANGES.get(name)
            ),
        )
    measured = {name: results.keep(name, dict) for name in SETTINGS if name in results}
    users = split.validation.users
    rows = [row_of(name, result, measured[BASELINE], users) for name, result in measured.items()]
    write_benchmark(
        options.output,
        name="ablations",
        protocol={
            "baseline": f"{MOVIELENS}, {options.epochs:g} epochs",
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never used",
            "epoch": "the best on validation",
            "interval": "95%, bootstrap over users; differences from the baseline are paired",
            "nll": "of the true item among all items; far less noisy than NDCG@10",
            "seconds": "of training, validations and building the model included",
            "threads": options.threads,
            "rows": f"{len(rows)} settings, one seed each: chance alone moves the best of them up",
        },
        rows=rows,
        figures={
            f"{figure}_{row['system'].replace(' ', '_')}": row[key]
            for row in rows
            for figure, key in (("ndcg10_validation", "value"), ("nll_validation", "nll"))
        },
        seeds=[config.train.seed],
    )


if __name__ == "__main__":
    main(started(PARSER))
