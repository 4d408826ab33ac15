"""Which users taught a prediction: scores against models retrained on half of the users.

Linear datamodeling score (LDS; Park et al. 2023, arXiv:2303.14186): for every test target, the
Spearman correlation, over retrained models, of the target's log-odds with the sum of the scores of
the users that the model was trained on. The damping is the best one on the even test targets; the
figures are means over the odd ones.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.harness import arguments, results_of, row_of, started, write_benchmark
from benchmarks.training_runs import small_gru, train_whole
from llm_influence.attribution.target import Item, bind
from llm_influence.attribution.training_influence import TrainingGradients, target_gradient
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.planted import make_planted
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.numerics import bootstrap_interval
from llm_influence.rendering.encoder import collate
from llm_influence.types import FloatArray, History

PARSER = arguments(
    __doc__,
    "training_influence",
    models=(60, "models retrained on random halves of the users"),
    users=(200, "training users"),
    targets=(80, "test histories, of other users of the same process"),
    items=(200, "items of the generated log"),
    epochs=(15.0, "epochs of every model"),
    size=(4096, "numbers kept of each gradient"),
    ensemble=(5, "full models with other seeds whose scores are averaged, for comparison"),
)
DAMPINGS = (None, 10.0, 1.0, 0.1, 0.01, 0.001)
Cases = list[tuple[History, Item]]


def config_of(options: argparse.Namespace, seed: int) -> RunConfig:
    """A GRU of width 32 without a memory, as a memory is not trained by gradients."""
    return small_gru(
        options.work / "model",
        seed,
        epochs=options.epochs,
        model={
            "recurrent": {"width": 32},
            "item_head": {"score": "dot", "memory": {"enabled": False}},
        },
        train={"batch_size": 16},
    )


def trained(
    options: argparse.Namespace, log: BehaviorLog, kept: np.ndarray, seed: int
) -> InfluenceModel:
    """The model after training on the kept users; all have the items of the whole log."""
    config = config_of(options, seed)
    part = log.select([str(user) for user in np.array(log.user_ids.to_pylist())[kept]])
    model = InfluenceModel.build(config, part)
    train_whole(model, config, part, Path(config.output))
    shutil.rmtree(config.output, ignore_errors=True)
    return model.eval()


def values_of(model: InfluenceModel, cases: Cases) -> list[float]:
    """Log-odds of every test target."""
    histories = [history for history, _ in cases]
    codes = torch.cat([bind(target, model, [history]).codes for history, target in cases])
    with inference(model):
        prediction = model.heads(model.query(collate(model.encoder.encode(histories))))
        values: list[float] = log_odds(prediction.item_logits, codes).tolist()
    return values


def gradient_scores(
    options: argparse.Namespace, log: BehaviorLog, cases: Cases, seed: int
) -> dict[str, object]:
    """(targets, users) scores of one full model by damping, and the seconds of both steps."""
    model = trained(options, log, np.arange(len(log)), seed)
    begun = time.perf_counter()
    gradients = TrainingGradients.compute(model, log, size=options.size)
    stored = time.perf_counter()
    queries = [target_gradient(model, h, bind(t, model, [h]), size=options.size) for h, t in cases]
    asked = time.perf_counter()
    scores = {
        str(damping): [gradients.scores(query, damping).tolist() for query in queries]
        for damping in DAMPINGS
    }
    return {
        "seconds": stored - begun,
        "query_seconds": (asked - stored) / len(cases),
        "scores": scores,
    }


def common_items(log: BehaviorLog, cases: Cases) -> dict[str, FloatArray]:
    """(targets, users) baselines: items in common, those beside the target, and the target."""
    owned = [set(history.item_ids()) for history in log]
    history = np.array([[len(set(h.item_ids()) & items) for items in owned] for h, _ in cases])
    target = np.array([[t.id in items for items in owned] for _, t in cases])
    return {
        "items in common": history + target.astype(float),
        "has the target": target.astype(float),
        "target first, then items in common": 100.0 * target + history,
    }


def datamodeling(scores: FloatArray, masks: FloatArray, values: FloatArray) -> FloatArray:
    """(T,) Spearman correlations of (T, U) scores with (M, T) values of models of (M, U) users."""
    sums = masks @ scores.T
    pairs = zip(sums.T, values.T, strict=True)
    return np.array([0.0 if np.ptp(s) == 0 else spearmanr(s, v).statistic for s, v in pairs])


def main(options: argparse.Namespace) -> None:
    """Train, score, compare and write."""
    process = {"items": options.items, "clusters": 10, "seed": 0}
    log, _ = make_planted(users=options.users, **process)
    others, _ = make_planted(users=options.targets, user_seed=1, **process)
    cases = [(h.keep(slice(None, -1)), Item(h.item_ids()[-1])) for h in others]
    names = ("users", "targets", "items", "epochs", "size")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    masks = np.zeros((options.models, len(log)))
    for number in range(options.models):
        draw = np.random.default_rng([7, number])
        masks[number, draw.permutation(len(log))[: len(log) // 2]] = 1
    full = [
        results.keep(f"full {seed}", lambda seed=seed: gradient_scores(options, log, cases, seed))
        for seed in range(options.ensemble)
    ]
    values = np.array(
        [
            results.keep(
                f"half {number}",
                lambda number=number: values_of(
                    trained(options, log, np.flatnonzero(masks[number]), 0), cases
                ),
            )
            for number in range(options.models)
        ]
    )
    by_damping = {str(d): np.array([one["scores"][str(d)] for one in full]) for d in DAMPINGS}
    chosen, unseen = np.arange(0, len(cases), 2), np.arange(1, len(cases), 2)
    single = {d: datamodeling(s[0], masks, values) for d, s in by_damping.items()}
    best = max(single, key=lambda d: single[d][chosen].mean())
    compared = {
        f"damping {d}" if d != "None" else "TracIn, projected": v for d, v in single.items()
    }
    compared[f"damping {best}, {options.ensemble} models"] = datamodeling(
        by_damping[best].mean(axis=0), masks, values
    )
    baselines = {n: datamodeling(s, masks, values) for n, s in common_items(log, cases).items()}
    rows = []
    for name, lds in (compared | baselines).items():
        ends = bootstrap_interval(lds[unseen], unseen)
        mean = float(lds[unseen].mean())
        rows.append(
            row_of(
                name, "planted", "lds", mean, *map(float, ends), choice=float(lds[chosen].mean())
            )
        )
    strongest = max(baselines, key=lambda n: baselines[n][unseen].mean())
    gain = single[best][unseen] - baselines[strongest][unseen]
    low, high = bootstrap_interval(single[best][unseen], unseen)
    gain_low, gain_high = bootstrap_interval(gain, unseen)
    write_benchmark(
        options.output,
        name="training_influence",
        protocol={
            "data": f"generated log, {options.users} users, {options.items} items",
            "model": f"GRU of width 32, no memory, {options.epochs:g} epochs",
            "retrained": f"{options.models} models, each on a random half of the users, same seed",
            "targets": "last items of other users; even: choose the damping, odd: measured",
            "value": "log-odds of the target; Spearman over models, mean and interval over targets",
        },
        rows=rows,
        figures={
            "lds": float(single[best][unseen].mean()),
            "lds_low": float(low),
            "lds_high": float(high),
            "damping": best,
            "lds_tracin": float(single["None"][unseen].mean()),
            "lds_baseline": float(baselines[strongest][unseen].mean()),
            "baseline": strongest,
            "gain": float(gain.mean()),
            "gain_low": float(gain_low),
            "gain_high": float(gain_high),
            "models": options.models,
            "seconds_per_user": full[0]["seconds"] / len(log),
            "seconds_per_query": full[0]["query_seconds"],
        },
        seeds=list(range(options.ensemble)),
    )


if __name__ == "__main__":
    main(started(PARSER))
