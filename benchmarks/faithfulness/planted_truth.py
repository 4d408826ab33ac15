"""Planted truth: a model learns a known law; which method finds what truly made it predict?

    python -m benchmarks.faithfulness.planted_truth [--output runs/planted_truth] [--seed 11]

Makes a log by a law, trains a small decoder on it from nothing, and explains other users of the
same law with every registered method: why the item that the law favours, and not the best of
another cluster? The best method is chosen on one half of these users and all figures are of the
other half. From its influences alone the law's behaviour weights and half-life are then fitted,
through the question that the method asks (`planted_fit`); for comparison as if all asked one.
Goes on where it was broken off: a trained model and finished methods are not computed again.
Writes docs/benchmarks/planted_truth.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from benchmarks.faithfulness.process_fit import ASKED, FittedLaw, alone, fit_law
from benchmarks.harness import write_benchmark
from benchmarks.whole_log import fitted
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.target import Contrast
from llm_influence.config.model import ScratchConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.synthetic import PlantedConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.planted import DISTRACTOR, PlantedTruth, make_planted
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.faithfulness.recovery import Recovery, recovery
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scratch import make_backbone
from llm_influence.rendering.template import Template
from llm_influence.types import FloatArray

LAW = {
    "behaviors": {"purchase": 1.0, "click": 0.5, "dismiss": -0.5},
    "half_life": 12 * 3600.0,
    "clusters": 4,
    "items": 40,
    "max_events": 12,
    "distractor_share": 0.15,
    "temperature": 0.6,
}
"""What is planted, beside the defaults of `PlantedConfig`; chosen on seed 1."""

WORDED_USERS = 200
"""Users whose rendered histories the tokenizer is trained on; all words stand in them."""

Scores = list[FloatArray]


@dataclass(frozen=True)
class Explained:
    """One method's scores of the explained histories, or why it refused them."""

    method: str
    removal: str | None
    scores: Scores
    evaluations: float
    seconds: float
    refused: str = ""

    @property
    def name(self) -> str:
        """The method, and the removal where it can use several."""
        several = len(METHODS[self.method].removals) > 1
        return f"{self.method} ({self.removal})" if several else self.method


def run_config(options: argparse.Namespace) -> RunConfig:
    """A small decoder of which everything is trained; one token an event."""
    return RunConfig.model_validate(
        {
            "output": str(options.output),
            "rendering": {"template": "fused", "max_events": LAW["max_events"]},
            "model": {
                "backbone": str(options.output / "backbone"),
                "dropout": 0.0,
                "adapter": {"kind": "full"},
                "item_head": {"score": "dot"},
                "behavior_head": {"weight": 0.0},
            },
            "train": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "item_learning_rate": options.learning_rate,
                "weight_decay": 0.0,
                "warmup": 0.05,
                "precision": "fp32",
                "seed": options.seed,
            },
            "evaluation": {"exclude_seen": False},
        }
    )


def trained(options: argparse.Namespace, log: BehaviorLog) -> InfluenceModel:
    """The model after the last epoch, trained unless it is there."""
    folder, config = options.output / "model", run_config(options)
    if not (folder / "model.json").exists():  # which is written last
        backbone = options.output / "backbone"
        if not backbone.exists():
            few = log.prefix(np.where(np.arange(len(log)) < WORDED_USERS, log.lengths, 0))
            sizes = ScratchConfig(
                vocab_size=400, layers=options.layers, width=options.width, context=64
            )
            make_backbone(few, Template.load("compact"), sizes, backbone)
    return fitted(config, log, options.output)


def likelihood(model: InfluenceModel, truth: PlantedTruth) -> dict[str, float]:
    """What the model knows of the law: nats of surprise at what came next, and the distance."""
    histories = [truth.history(user) for user in range(len(truth.log))]
    came = truth.log.items[truth.log.offsets[1:] - 1]
    law = np.stack([truth.process.log_probabilities(history) for history in histories])
    ours = np.concatenate(
        [p.item_logits.double().log_softmax(-1).cpu().numpy() for _, p in model.predict(histories)]
    )
    rows = np.arange(len(came))
    return {
        "nll_model": float(-ours[rows, came].mean()),
        "nll_law": float(-law[rows, came].mean()),
        "entropy_law": float(-(np.exp(law) * law).sum(axis=1).mean()),
        "nll_uniform": float(np.log(law.shape[1])),
        "divergence_from_law": float((np.exp(law) * (law - ours)).sum(axis=1).mean()),
    }


def explained(
    options: argparse.Namespace, model: InfluenceModel, truth: PlantedTruth
) -> Iterator[Explained]:
    """Every method with every removal it can use."""
    for method, spec in METHODS.items():
        for removal in spec.removals or (None,):
            path = options.output / "scores" / f"{method}-{removal}.json"
            if not path.exists():
                found = _explain(model, truth, method, removal, options.explained)
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(found), encoding="utf-8")
            found = json.loads(path.read_text(encoding="utf-8"))
            found["scores"] = [np.array(row) for row in found["scores"]]
            yield Explained(method, removal, **found)


def _explain(
    model: InfluenceModel, truth: PlantedTruth, method: str, removal: str | None, count: int
) -> dict[str, object]:
    """Scores of the first ``count`` histories, those of one contrast together."""
    ids, together = truth.process.item_ids.to_pylist(), defaultdict(list)
    for user in range(count):
        together[Contrast(ids[truth.targets[user]], ids[truth.others[user]])].append(user)
    explainer, begun = Explainer(model, method, removal=removal), time.perf_counter()
    scores, evaluations = {}, 0
    try:
        for target, users in together.items():
            influences = explainer.explain([truth.history(user) for user in users], target)
            evaluations += sum(influence.quality.evaluations for influence in influences)
            scores |= {u: i.scores.tolist() for u, i in zip(users, influences, strict=True)}
    except ExplanationError as error:
        return {"scores": [], "evaluations": 0, "seconds": 0, "refused": str(error)}
    return {
        "scores": [scores[user] for user in range(count)],
        "evaluations": evaluations / count,
        "seconds": time.perf_counter() - begun,
    }


def held_against(truth: PlantedTruth, found: Explained, users: range) -> Recovery:
    """The recovery of some users' truth."""
    return recovery(
        [found.scores[user] for user in users],
        [truth.influence[user] for user in users],
        [truth.is_cause[user] for user in users],
    )


def fitted_law(truth: PlantedTruth, found: Explained, users: range) -> FittedLaw:
    """The law that a method's scores speak of, as answers to the method's own question."""
    question = ASKED.get(found.method, alone) if found.removal == "drop" else alone
    return fit_law(truth, found.scores, users, question)


def fit_rows(truth: PlantedTruth, found: Explained, users: range) -> Iterator[dict[str, object]]:
    """How far off the law is that a method that drops events speaks of."""
    system = {"system": found.name, "task": "law recovered"}
    for metric, value in fitted_law(truth, found, users).errors(truth.process).items():
        yield {**system, "metric": metric, "value": value}
    as_if = fit_law(truth, found.scores, users, alone).errors(truth.process)
    yield {**system, "metric": "half_life_error as if alone", "value": as_if["half_life_error"]}


def rows_of(found: Explained, measured: Recovery | None) -> Iterator[dict[str, object]]:
    """A method's records: every figure with its interval over users."""
    system = {"system": found.name, "task": "planted truth"}
    if measured is None:
        yield {**system, "metric": "refused", "value": found.refused}
        return
    means = measured.means()
    for field in fields(measured):
        values = getattr(measured, field.name)
        values = values[~np.isnan(values)]
        low, high = bootstrap_interval(values, np.arange(len(values)))
        yield {**system, "metric": field.name, "value": means[field.name], "low": low, "high": high}
    yield {**system, "metric": "evaluations a history", "value": found.evaluations}
    yield {**system, "metric": "seconds", "value": found.seconds}


def line(name: str, means: dict[str, float], evaluations: float) -> str:
    """One line of the table."""
    return (
        f"{name:36}"
        + "".join(f"{value:14.3f}" for value in means.values())
        + f"{evaluations:10.0f}"
    )


def main(options: argparse.Namespace) -> None:
    """Plant, train, explain, hold against the truth, write."""
    torch.set_num_threads(options.threads)
    planted = PlantedConfig(seed=options.seed, users=options.users, **LAW)
    log, _ = make_planted(planted)
    others = planted.model_copy(update={"users": options.held_out, "user_seed": 1})
    _, truth = make_planted(others)
    begun = time.perf_counter()
    model = trained(options, log)
    print(f"model ready after {time.perf_counter() - begun:.0f} s")
    known = likelihood(model, truth)
    print("  ".join(f"{name} {value:.4f}" for name, value in known.items()))
    half = options.explained // 2
    chosen_on, measured_on = range(half), range(half, options.explained)
    print(
        f"{'':36}" + "".join(f"{field.name:>14}" for field in fields(Recovery)) + "    evaluations"
    )
    rows, ranking, every = [], {}, {}
    for found in explained(options, model, truth):
        measured = None if found.refused else held_against(truth, found, measured_on)
        rows += rows_of(found, measured)
        if measured is None:
            print(f"{found.name:36} refused: {found.refused}")
            continue
        print(line(found.name, measured.means(), found.evaluations))
        if found.removal == "drop":
            rows += fit_rows(truth, found, measured_on)
        first = held_against(truth, found, chosen_on).means()
        ranking[found.name], every[found.name] = first["auroc"] + first["spearman"], found
    best = every[max(ranking, key=ranking.__getitem__)]
    means = held_against(truth, best, measured_on).means()
    fitted = fitted_law(truth, best, measured_on)
    print(f"best on the other half: {best.name}; fitted from it: {fitted}")
    tied = np.mean([np.mean(truth.influence[user] == 0) for user in measured_on])
    errors = fitted.errors(truth.process)
    write_benchmark(
        options.json,
        name="planted_truth",
        protocol={
            "law": planted.model_dump(mode="json"),
            "question": "contrast of the law's best item with the best of another cluster",
            "model": f"decoder of {options.layers} layers, {options.width} wide, from nothing, "
            f"{options.epochs} epochs over {options.users} users",
            "histories": f"{len(measured_on)} of users never trained on; the best method was "
            f"chosen on {half} others by AUROC + Spearman",
            "cause": f"an event with at least {planted.cause_share:.0%} of its history's largest "
            "true influence",
            "share_of_events_with_no_influence": tied,
            "distractor": DISTRACTOR,
            "fitted_half_life_hours": fitted.half_life / 3600,
            "fitted_weights": fitted.weights,
            "threads": options.threads,
        },
        rows=rows,
        figures={
            "best_method": best.name,
            **{name: means[name] for name in ("auroc", "auprc", "spearman", "mass")},
            "behavior_weight_error": errors["behavior_weight_error"],
            "half_life_error": errors["half_life_error"],
            **known,
        },
        seeds=[options.seed],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/planted_truth"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/planted_truth.json"))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--users", type=int, default=200_000, help="trained on")
    parser.add_argument("--held-out", type=int, default=4000, help="for the likelihood")
    parser.add_argument("--explained", type=int, default=400, help="of those, by every method")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
