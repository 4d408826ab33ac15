"""What each part of the shipped configuration is worth: docs/benchmarks/ablations.json.

    python -m benchmarks.training.ablations [--core 0] [--epochs 2] [--only "baseline,score dot"]

Every row is configs/movielens_100k.yaml with one thing changed, trained for ``--epochs`` and
measured on validation; the test split is never looked at. An epoch takes about half a minute on
one core, so the default is 2 epochs instead of the configuration's 5, and all rows take about an
hour; what needs longer training than others is at a disadvantage in them. Finished rows leave a
JSON in ``--work`` and are skipped by the next call; the file is written from those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import write_benchmark
from benchmarks.training_runs import train
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.evaluation.metrics import (
    ndcg_of_rows,
    protocol,
    ranking_metrics,
    seen_items,
    target_ranks,
)
from llm_influence.modeling.model import InfluenceModel
from llm_influence.utils import write_text

CONFIG = Path("configs/movielens_100k.yaml")
BASELINE = "baseline"

SETTINGS: dict[str, list[str]] = {
    BASELINE: [],
    "item texts off": [],  # see `CHANGES`
    "item residuals off": [],
    "item residuals of rank 8": ["model.item_head.residual_rank=8"],
    "item residuals of rank 32": ["model.item_head.residual_rank=32"],
    "residual dropout 0.5": ["model.residual_dropout=0.5"],
    "score dot": ["model.item_head.score=dot"],
    "temperature 0.03": ["model.item_head.temperature=0.03"],
    "temperature 0.2": ["model.item_head.temperature=0.2"],
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
    "20 events": ["rendering.max_events=20"],
    "100 events": ["rendering.max_events=100"],
    "LoRA rank 4": ["model.adapter.rank=4", "model.adapter.alpha=8"],
    "LoRA rank 64": ["model.adapter.rank=64", "model.adapter.alpha=128"],
    "backbone frozen": ["model.adapter={kind: frozen}"],
    "layers 1": ["model.layers=1"],
    "layers 2": ["model.layers=2"],
    "layers 6": ["model.layers=6"],
    "dropout 0": ["model.dropout=0"],
    "dropout 0.3": ["model.dropout=0.3"],
    "event dropout 0.2": ["train.event_dropout=0.2"],
    "event dropout 0.5": ["train.event_dropout=0.5"],
    "batch 16": ["train.batch_size=16"],
    "batch 64": ["train.batch_size=64"],
    "seed 1": ["train.seed=1"],
}
"""What is changed; a template's name is one setting for what an event says and how long it is.
``seed 1`` changes nothing that matters: its difference is what chance alone makes."""

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
    """Keep the learned residuals of items at zero; those of the template's words are trained."""
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
"""What no configuration says, as nobody should want it."""


def config_of(name: str, options: argparse.Namespace) -> RunConfig:
    """The run of one setting."""
    words = [f"--{word}" for word in SETTINGS[name]]
    if name in TEMPLATES:
        path = options.work / f"{TEMPLATES[name]['name']}.yaml"
        write_text(path, json.dumps(TEMPLATES[name]))  # JSON is YAML
        words.append(f"--rendering.template={path}")
    usual = [f"--output={options.work / 'run'}", f"--train.epochs={options.epochs}"]
    return RunConfig.load(CONFIG, [*usual, *words])


def measure(name: str, split: Split, options: argparse.Namespace) -> dict[str, object]:
    """Train one setting and measure it on validation, row by row."""
    config = config_of(name, options)
    shutil.rmtree(config.output, ignore_errors=True)
    begun = time.perf_counter()
    trainer = train(config, split, prepare=CHANGES.get(name))
    seconds = time.perf_counter() - begun
    ranks, nll = validated(trainer.influence_model, split.validation)
    shutil.rmtree(config.output)
    return {"ranks": ranks.tolist(), "nll": nll.tolist(), "seconds": seconds}


def validated(model: InfluenceModel, rows: EvaluationSet) -> tuple[np.ndarray, np.ndarray]:
    """(N,) ranks and (N,) negative log-likelihoods of the true items."""
    histories = [rows.history(row) for row in range(len(rows))]
    targets = torch.from_numpy(rows.target_items.astype(np.int64))
    ranks, nll = [], []
    for part, prediction in model.predict(histories):
        logits = prediction.item_logits.float().cpu()
        seen = seen_items([history.items for history in histories[part]])
        ranks.append(target_ranks(logits, targets[part], seen))
        nll.append(F.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(ranks).numpy(), torch.cat(nll).numpy()


def row_of(name: str, found: dict, baseline: dict, users: np.ndarray) -> dict[str, object]:
    """A setting's line of the file: its values, and its differences from the baseline."""
    ndcg, first = ndcg_of_rows(found["ranks"]), ndcg_of_rows(baseline["ranks"])
    nll, first_nll = np.array(found["nll"]), np.array(baseline["nll"])
    low, high = bootstrap_interval(ndcg, users)
    row = {
        "system": name,
        "task": "next item, validation",
        "changed": "; ".join(SETTINGS[name]) or name,
        "metric": "ndcg@10",
        "value": float(ndcg.mean()),
        "low": low,
        "high": high,
        "hr@10": ranking_metrics(np.array(found["ranks"]))["hr@10"],
        "nll": float(nll.mean()),
        "seconds": found["seconds"],
    }
    if name != BASELINE:
        for metric, values in (("ndcg", ndcg - first), ("nll", nll - first_nll)):
            low, high = bootstrap_interval(values, users)
            row |= {
                f"{metric}_difference": float(values.mean()),
                f"{metric}_difference_low": low,
                f"{metric}_difference_high": high,
            }
    return row


def main(options: argparse.Namespace) -> None:
    """Measure the settings that have no result yet, then write all that have one."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(options.threads)
    asked = [name.strip() for name in options.only.split(",")] if options.only else list(SETTINGS)
    if unknown := set(asked) - SETTINGS.keys():
        raise SystemExit(f"--only {', '.join(unknown)}: choose among {', '.join(SETTINGS)}")
    config = config_of(BASELINE, options)
    split = split_log(open_data(config.data), config.data.split)
    kept = options.work / f"epochs_{options.epochs:g}"
    for name in dict.fromkeys([BASELINE, *asked]):
        path = kept / f"{name}.json"
        if not path.is_file():
            write_text(path, json.dumps(measure(name, split, options)) + "\n")
        ndcg = ndcg_of_rows(json.loads(path.read_text(encoding="utf-8"))["ranks"]).mean()
        print(f"{name}: NDCG@10 {ndcg:.4f}", flush=True)
    found = {
        name: json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
        for name in SETTINGS
        if (kept / f"{name}.json").is_file()
    }
    users = split.validation.users
    rows = [row_of(name, result, found[BASELINE], users) for name, result in found.items()]
    write_benchmark(
        options.write,
        name="ablations",
        protocol={
            "baseline": f"{CONFIG}, {options.epochs:g} epochs",
            "split": split.description,
            "validation": protocol(split.validation, config.evaluation),
            "test": "never looked at",
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--only", help="names of settings, with commas between; default: all")
    parser.add_argument("--core", type=int, help="run on this CPU core alone; default: any")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_ablations"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/ablations.json"))
    main(parser.parse_args())
