"""Faithfulness of our attribution methods and Captum's: docs/benchmarks/faithfulness_ml100k.json.

    python -m benchmarks.faithfulness.ml100k --model runs/movielens_100k --work runs/faithfulness

Another run needs ``--output docs/benchmarks/faithfulness_complete_journey.json``, say.

Finished shards in ``--work`` are used again. The recommended method is named on the command line
before anything is measured and is the same for every metric. Of Captum's methods the best is taken
metric by metric.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import captum
import yaml

from benchmarks.attribution import captum_methods as peers
from benchmarks.harness import arguments, started, write_benchmark
from llm_influence.attribution.methods import METHODS
from llm_influence.batch.studies import measure_faithfulness
from llm_influence.faithfulness.evaluate import ComparedMethod, FaithfulnessOptions, compared_method
from llm_influence.faithfulness.metrics import METRICS
from llm_influence.faithfulness.result import (
    FaithfulnessResult,
    Interval,
    misleading_lines,
    to_markdown,
)
from llm_influence.run import Run

SEED = 0
PARSER = arguments(
    __doc__,
    "faithfulness_ml100k",
    threads=None,
    model={"type": Path, "required": True, "help": "folder that `finetune` wrote"},
    users=100,
    skip=(0, "users left out, such as those tuned on"),
    events=40,
    removal="drop",
    check_removal=("mask", "empty for none"),
    methods={"nargs": "*", "default": [], "help": "default: all that can take part"},
    option={"nargs": "*", "default": [], "help": "method.name=value"},
    recommended="shapley",
    budget=200,
    masks=64,
)
FIGURES = {
    "lds": "lds",
    "deletion_auc": "deletion_auc",
    "insertion_auc": "insertion_auc",
    "comprehensiveness": "comprehensiveness_aopc",
}
"""Keys of figures, and the metric of each; fixed beforehand."""
TOO_EXPENSIVE = ("exact_shapley",)
"""Methods that refuse histories of this length."""


def captum_methods(budget: int) -> list[ComparedMethod]:
    """Captum's methods; those that sample get ``budget`` evaluations."""
    plain = {
        "captum_feature_ablation": peers.feature_ablation,
        "captum_layer_integrated_gradients": peers.layer_integrated_gradients,
        "captum_input_x_gradient": peers.input_x_gradient,
        "captum_saliency": peers.saliency,
    }
    sampled = {
        "captum_shapley_value_sampling": peers.shapley_value_sampling,
        "captum_kernel_shap": peers.kernel_shap,
    }
    return [
        *(ComparedMethod(label, run) for label, run in plain.items()),
        *(
            ComparedMethod(
                label,
                lambda task, run=run: run(task, budget=budget),
                options={"budget": budget},
            )
            for label, run in sampled.items()
        ),
    ]


def our_methods(names: list[str], words: list[str], removals: list[str]) -> list[ComparedMethod]:
    """The named methods of the registry, or all that can use the removals, with their options."""
    chosen = names or [
        name
        for name, spec in METHODS.items()
        if spec.family != "baseline"
        and name not in TOO_EXPENSIVE
        and (not spec.removals or set(removals) <= set(spec.removals))
    ]
    own: dict[str, dict[str, object]] = {name: {} for name in chosen}
    for word in words:
        key, _, value = word.partition("=")
        method, _, option = key.partition(".")
        if method not in own or not option:
            raise SystemExit(f"cannot read {word!r}: write method.name=value of a measured method")
        own[method][option] = yaml.safe_load(value)
    return [compared_method(name, options) for name, options in own.items()]


def best_peer(result: FaithfulnessResult, metric: str) -> str:
    """The Captum method with the best mean on a metric."""
    sign = 1 if METRICS[metric].better == "high" else -1
    captums = [label for label in result.methods if label.startswith("captum_")]
    return max(captums, key=lambda label: sign * result.interval(label, metric).mean)


def figures(result: FaithfulnessResult, recommended: str) -> dict[str, str | float]:
    """The recommended method beside the best peer: means, and the paired difference."""
    values: dict[str, str | float] = {"recommended": recommended}
    for key, metric in FIGURES.items():
        peer = best_peer(result, metric)
        apart = result.difference(recommended, peer, metric)
        values |= {
            key: result.interval(recommended, metric).mean,
            f"{key}_best_peer": result.interval(peer, metric).mean,
            f"{key}_best_peer_name": peer,
            f"{key}_difference": apart.mean,
            f"{key}_difference_low": apart.low,
            f"{key}_difference_high": apart.high,
        }
    sanity: Interval = result.interval(recommended, "randomisation")
    return values | {
        "randomisation": sanity.mean,
        "randomisation_low": sanity.low,
        "randomisation_high": sanity.high,
    }


def main(options: argparse.Namespace) -> None:
    """Measure and write."""
    setup = FaithfulnessOptions(
        removal=options.removal,
        check_removal=options.check_removal or None,
        last=options.events,
        masks=options.masks,
        seed=SEED,
    )
    ours = our_methods(options.methods, options.option, list(setup.removals))
    if options.recommended not in [each.label for each in ours]:
        raise SystemExit(f"{options.recommended!r} is not among the methods")
    compared = [*ours, *captum_methods(options.budget)]
    run = Run.open(options.model)
    histories = run.test_histories(options.users, seed=SEED, skip=options.skip)
    result = measure_faithfulness(run.model, histories, compared, options.work, setup)
    write_benchmark(
        options.output,
        name=options.output.stem,
        protocol={
            "data": run.config.data.source,
            "histories": f"{len(histories)} users of the test split, drawn by the seed, "
            f"the first {options.skip} left out; the last "
            f"{options.events} events before the tested one, as if there had been no others",
            "target": "log-odds of each history's first recommendation among unseen items",
            "removal": f"{setup.removal}, the same for every method and metric",
            "check_removal": setup.check_removal or "none",
            "budget": f"{options.budget} evaluations for Captum's sampling methods",
            "held_out_sets": setup.masks,
            "best_peer": "the Captum method of the best mean, metric by metric",
            "recommended": "fixed before measuring, the same for every metric",
            "intervals": "95%, bootstrap over users; differences are paired",
            "options": {each.label: dict(each.options) for each in compared},
            "misleading": misleading_lines(result),
        },
        rows=[
            {"system": row["method"], "task": f"removal {row['removal']}"}
            | {key: row[key] for key in row if key not in {"method", "removal"}}
            for row in result.summary()
        ],
        figures=figures(result, options.recommended),
        seeds=[SEED],
        versions={"captum": captum.__version__},
    )
    for removal in result.removals:
        print(to_markdown(result, removal))


if __name__ == "__main__":
    main(started(PARSER))
