"""Which method recovers the true influence of a known generating process: planted_truth.json.

    python -m benchmarks.faithfulness.planted_truth [--seed 11]

Makes a log by a known process, trains a small decoder on it from scratch, and explains other users
of the same process with every registered method. The target is the contrast of the item that the
process favours with the best of another cluster. The best method is chosen on one half of these
users; all figures are of the other half. From its influences the process's behaviour weights and
half-life are then fitted (`process_fit`), through the question that the method answers.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.faithfulness.process_fit import QUESTIONS, FittedProcess, alone, fit_process
from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.training_runs import fitted, small_config, with_interval
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.target import Contrast
from llm_influence.config.data import PlantedConfig
from llm_influence.config.model import ScratchConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.planted import DISTRACTOR, PlantedTruth, make_planted
from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.games import Recovery, recovery
from llm_influence.modeling.build import make_backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.template import Template
from llm_influence.types import FloatArray

PROCESS = {
    "behaviors": {"purchase": 1.0, "click": 0.5, "dismiss": -0.5},
    "half_life": 12 * 3600.0,
    "clusters": 4,
    "items": 40,
    "max_events": 12,
    "distractor_share": 0.15,
    "temperature": 0.6,
}
"""The generating process, beside the defaults of `PlantedConfig`; chosen on seed 1."""

WORDED_USERS = 200
"""Users whose rendered histories the tokenizer is trained on; they hold all words."""

PARSER = arguments(
    __doc__,
    "planted_truth",
    seed=11,
    users=(200_000, "trained on"),
    held_out=(4000, "for the likelihood"),
    explained=(400, "of those, by every method"),
    epochs=3.0,
    batch_size=128,
    learning_rate=3e-3,
    layers=3,
    width=64,
)


@dataclass(frozen=True)
class Explained:
    """One method's scores of the explained histories, or why it refused them."""

    method: str
    removal: str | None
    scores: list[FloatArray]
    evaluations: float
    seconds: float
    refused: str = ""

    @property
    def name(self) -> str:
        """The method, and the removal where it can use several."""
        several = len(METHODS[self.method].removals) > 1
        return f"{self.method} ({self.removal})" if several else self.method


def run_config(options: argparse.Namespace, output: Path) -> RunConfig:
    """A small decoder of which everything is trained; one token an event."""
    rate = options.learning_rate
    return small_config(
        output,
        options.seed,
        rendering={"max_events": PROCESS["max_events"]},
        model={"backbone": str(output / "backbone")},
        train={
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": rate,
            "item_learning_rate": rate,
            "warmup": 0.05,
        },
    )


def trained(options: argparse.Namespace, log: BehaviorLog) -> InfluenceModel:
    """The model after the last epoch, trained unless it is there."""
    backbone = options.work / "backbone"
    if not backbone.exists():
        few = log.prefix(np.where(np.arange(len(log)) < WORDED_USERS, log.lengths, 0))
        sizes = ScratchConfig(
            vocab_size=400, layers=options.layers, width=options.width, context=64
        )
        make_backbone(few, Template.load("compact"), sizes, backbone)
    return fitted(run_config(options, options.work), log, options.work)


def likelihood(model: InfluenceModel, truth: PlantedTruth) -> dict[str, float]:
    """Nats of surprise at what came next, by model and process, and their divergence."""
    histories = [truth.history(user) for user in range(len(truth.log))]
    came = truth.log.items[truth.log.offsets[1:] - 1]
    process = np.stack([truth.process.log_probabilities(history) for history in histories])
    ours = np.concatenate(
        [p.item_logits.double().log_softmax(-1).cpu().numpy() for _, p in model.predict(histories)]
    )
    rows = np.arange(len(came))
    return {
        "nll_model": float(-ours[rows, came].mean()),
        "nll_process": float(-process[rows, came].mean()),
        "entropy_process": float(-(np.exp(process) * process).sum(axis=1).mean()),
        "nll_uniform": float(np.log(process.shape[1])),
        "divergence_from_process": float((np.exp(process) * (process - ours)).sum(axis=1).mean()),
    }


def explained(
    options: argparse.Namespace, model: InfluenceModel, truth: PlantedTruth
) -> Iterator[Explained]:
    """Every method with every removal it can use."""
    names = ("seed", "users", "explained", "epochs", "layers", "width")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    for method, spec in METHODS.items():
        for removal in spec.removals or (None,):
            record = results.keep(
                f"{method}, {removal}",
                lambda m=method, r=removal: _explain(model, truth, m, r, options.explained),
            )
            scores = [np.array(row) for row in record["scores"]]
            yield Explained(method, removal, **record | {"scores": scores})


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
            scores |= {u: i.values.tolist() for u, i in zip(users, influences, strict=True)}
    except ExplanationError as error:
        return {"scores": [], "evaluations": 0, "seconds": 0, "refused": str(error)}
    return {
        "scores": [scores[user] for user in range(count)],
        "evaluations": evaluations / count,
        "seconds": time.perf_counter() - begun,
    }


def compared_with_truth(truth: PlantedTruth, one: Explained, users: range) -> Recovery:
    """The recovery of some users' truth."""
    return recovery(
        [one.scores[user] for user in users],
        [truth.influence[user] for user in users],
        [truth.is_cause[user] for user in users],
    )


def fit_of(truth: PlantedTruth, one: Explained, users: range) -> FittedProcess:
    """The process that a method's scores describe, as answers to the method's own question."""
    question = QUESTIONS.get(one.method, alone) if one.removal == "drop" else alone
    return fit_process(truth, one.scores, users, question)


def fit_rows(truth: PlantedTruth, one: Explained, users: range) -> Iterator[Row]:
    """Errors of the process that a method's scores describe."""
    task = "process recovered"
    for metric, value in fit_of(truth, one, users).errors(truth.process).items():
        yield row_of(one.name, task, metric, value)
    as_if = fit_process(truth, one.scores, users, alone).errors(truth.process)
    yield row_of(one.name, task, "half_life_error as if alone", as_if["half_life_error"])


def rows_of(one: Explained, measured: Recovery | None) -> Iterator[Row]:
    """Every figure of a method with its interval over users."""
    task = "planted truth"
    if measured is None:
        yield row_of(one.name, task, "refused", one.refused)
        return
    for part in fields(measured):
        values = getattr(measured, part.name)
        values = values[~np.isnan(values)]
        interval = with_interval(values, np.arange(len(values)))
        yield {"system": one.name, "task": task, "metric": part.name, **interval}
    yield row_of(one.name, task, "evaluations a history", one.evaluations)
    yield row_of(one.name, task, "seconds", one.seconds)


def main(options: argparse.Namespace) -> None:
    """Generate, train, explain, compare with the truth, write."""
    planted = PlantedConfig(seed=options.seed, users=options.users, **PROCESS)
    log, _ = make_planted(planted)
    _, truth = make_planted(planted.model_copy(update={"users": options.held_out, "user_seed": 1}))
    model = trained(options, log)
    known = likelihood(model, truth)
    half = options.explained // 2
    chosen_on, measured_on = range(half), range(half, options.explained)
    rows, ranking, every = [], {}, {}
    for one in explained(options, model, truth):
        measured = None if one.refused else compared_with_truth(truth, one, measured_on)
        rows += rows_of(one, measured)
        if measured is None:
            continue
        print(one.name, {name: round(value, 3) for name, value in measured.means().items()})
        if one.removal == "drop":
            rows += fit_rows(truth, one, measured_on)
        first = compared_with_truth(truth, one, chosen_on).means()
        ranking[one.name], every[one.name] = first["auroc"] + first["spearman"], one
    best = every[max(ranking, key=ranking.__getitem__)]
    means = compared_with_truth(truth, best, measured_on).means()
    fit = fit_of(truth, best, measured_on)
    tied = np.mean([np.mean(truth.influence[user] == 0) for user in measured_on])
    errors = fit.errors(truth.process)
    write_benchmark(
        options.output,
        name="planted_truth",
        protocol={
            "process": planted.model_dump(mode="json"),
            "question": "contrast of the process's best item with the best of another cluster",
            "model": f"decoder of {options.layers} layers, {options.width} wide, from scratch, "
            f"{options.epochs} epochs over {options.users} users",
            "histories": f"{len(measured_on)} of users never trained on; the best method was "
            f"chosen on {half} others by AUROC + Spearman",
            "cause": f"an event with at least {planted.cause_share:.0%} of its history's largest "
            "true influence",
            "share_of_events_with_no_influence": tied,
            "distractor": DISTRACTOR,
            "fitted_half_life_hours": fit.half_life / 3600,
            "fitted_weights": fit.weights,
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
    main(started(PARSER))
