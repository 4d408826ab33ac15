"""Measure our attribution methods beside Captum's and shap's, on one model and one function.

    python -m benchmarks.attribution.speed --model RUN [--part shapley10] [--core 0]

Writes docs/benchmarks/attribution_speed.json once all four parts are measured. Every single
explanation is kept in --work as it comes; a run that was stopped, or done part by part, goes on.
"""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from benchmarks.attribution import integrated_gradients as ig_part
from benchmarks.attribution import leave_one_out as loo_part
from benchmarks.attribution import shapley as shapley_part
from benchmarks.attribution.case import Case, choose_cases
from benchmarks.attribution.masked_function import best_token_budget
from benchmarks.attribution.shapley import Measured, Setting
from benchmarks.attribution.store import Store
from benchmarks.harness import write_benchmark
from llm_influence.run import Run

PARTS = ("shapley10", "shapley40", "loo", "ig")
EVENTS = {"shapley10": 10, "shapley40": 40, "loo": 50, "ig": 50}
PASSES, TOLERANCE, GAP = 200, 0.1, 0.01
SEED = 0


def part_of(name: str, run: Run, options: argparse.Namespace) -> Measured:
    """Rows and figures of one part."""
    count = options.long_histories if name == "shapley40" else options.histories
    cases = choose_cases(run.model, run.split.test, EVENTS[name], count, SEED)
    store = Store(
        options.work / f"{name}.jsonl",
        {"model": str(options.model.resolve()), "core": options.core, "removal": "drop"},
    )
    shapley_part.warm(cases[0])
    budget = _token_budget(cases[0], store)
    if name == "loo":
        return loo_part.measure(cases, budget, options.repeats, store)
    if name == "ig":
        return ig_part.measure(cases, GAP, options.repeats, store)
    short = name == "shapley10"
    setting = Setting(
        cases=cases,
        pilot=len(cases) if short else min(options.pilot, len(cases)),
        token_budget=budget,
        seeds=range(options.seeds) if short else [SEED],
        tolerance=TOLERANCE,
        most_evaluations=options.most_evaluations,
        reference_evaluations=0 if short else options.reference_evaluations,
    )
    return shapley_part.measure(setting, store, evaluations=PASSES if short else None)


def _token_budget(case: Case, store: Store) -> int:
    """The peers' best token budget, found once."""
    found = store.keep(
        f"{case.key} | best token budget",
        lambda: {"tokens": best_token_budget(case.model, case.history, case.target)},
    )
    return int(found["tokens"])


def main(options: argparse.Namespace) -> None:
    """Measure the parts asked for, and write when all are there."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    run = Run.open(options.model)
    run.model.eval()
    rows, figures = [], {}
    with threadpool_limits(1):
        for name in options.part or PARTS:
            print(f"== {name}", flush=True)
            found, some = part_of(name, run, options)
            rows, figures = rows + found, figures | some
            print("\n".join(f"{key} = {value:.3g}" for key, value in some.items()), flush=True)
    if set(options.part or PARTS) != set(PARTS):
        print("one part alone: nothing is written; run without --part to write", flush=True)
        return
    write_benchmark(
        options.out,
        name="attribution_speed",
        protocol=protocol(run, options),
        rows=rows,
        figures=figures,
        seeds=list(range(options.seeds)),
        versions={package: metadata.version(package) for package in ("captum", "shap")},
    )
    print(f"written: {options.out}")


def protocol(run: Run, options: argparse.Namespace) -> dict[str, object]:
    """What was measured and how."""
    return {
        "model": f"{run.config.model.backbone}, fine-tuned on {run.config.data.source}, "
        f"template {run.config.rendering.template}",
        "function": "log-odds of the history's first unseen recommendation, removal drop: the "
        "history is rendered again without the removed events",
        "histories": f"{options.histories} users drawn from all with enough events "
        f"({options.long_histories} for 40 events), the last events before the tested one; the "
        "same ones for every system",
        "threads": "one, for every system",
        "clock": "from a fresh task to scores, one history at a time; rendering is inside, the "
        "choice of the target is outside, for every system. Leave one out and integrated "
        f"gradients: fastest of {options.repeats}",
        "peers": "the function takes many masks a call, renders them, sorts them by length and "
        "runs them in batches under the fastest of five token budgets; nothing is remembered or "
        "shared between masks. Captum ShapleyValueSampling: a permutation a call, the most it "
        "permits; KernelShap: all samples in one call; FeatureAblation: the fastest "
        "perturbations_per_eval of five. shap PermutationExplainer: a permutation there and back "
        "a call; KernelExplainer: all samples in one call, no selection of features",
        "evaluations": "masks the function was asked for, repeated ones included; ours: distinct masks",
        "relative_rmse": "root mean square error of a history's scores / standard deviation of "
        f"the true values; median over histories, of 10 events over {options.seeds} seeds each; "
        "peers' errors at 10 events are found on the table of all values, their seconds on the "
        "model",
        "truth": "10 events: exact, all 1,024 coalitions. 40 events: unbiased estimates: a game of "
        f"pairs is fitted on {options.reference_evaluations} coalitions, its Shapley values are known, "
        "and antithetic permutations of what it leaves take as many evaluations again; nothing of it is "
        "shared with our estimator. Their squared standard error (its root is a row) is taken from "
        "the squared error of every system",
        "ours": "shapley with tolerance 0, so that it spends the evaluations it is given; its own "
        "computation is inside the clock",
        "seconds_to_error": f"relative RMSE {TOLERANCE}: budgets double until the median error is "
        f"within, then {shapley_part.STEPS} halvings; on all histories for 10 events, on the "
        f"first {options.pilot} for 40 and then raised until all histories agree; at most "
        f"{options.most_evaluations} evaluations. The best peer is the one with the least seconds; one that "
        "has not reached the error stands with its largest budget, and the ratio to it is a lower "
        "bound",
        "leave_one_out": f"the two systems' values were equal to {loo_part.EQUAL:g} log-odds; "
        "ratio of the sums of seconds",
        "integrated_gradients": f"Captum LayerIntegratedGradients, {ig_part.STEPS} steps, fastest "
        "internal_batch_size of four, its own check of convergence left out of the clock; ours to "
        f"a completeness gap of {GAP}; the same baseline, mean; median over rows of the ratio",
        "precision": "float32, except where bfloat16 is named",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that `finetune` wrote")
    parser.add_argument("--part", choices=PARTS, nargs="+", help="default: all")
    parser.add_argument("--histories", type=int, default=30)
    parser.add_argument("--long-histories", type=int, default=30, help="of shapley40")
    parser.add_argument("--pilot", type=int, default=8, help="histories that choose 40's budgets")
    parser.add_argument("--seeds", type=int, default=2, help="explanations a history of 10 events")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-evaluations", type=int, default=40_000)
    parser.add_argument("--reference-evaluations", type=int, default=16_384)
    parser.add_argument("--core", type=int, help="pin the process to this core")
    parser.add_argument("--work", type=Path, default=Path("runs/attribution_speed"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/attribution_speed.json"))
    main(parser.parse_args())
