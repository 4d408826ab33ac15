"""Estimators of Shapley values on real games with known values: shapley_estimators.json.

    python -m benchmarks.attribution.shapley_estimators --model runs/movielens_100k [--users 40]

A game is a user's validation history, its last ten events, target top1: all 1,024 coalitions are
computed once and kept in ``--work``, and every estimator gets the same number of them. The error is
the RMSE against the exact values divided by their standard deviation. Peers take part where they
are installed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, arguments, row_of, started, write_benchmark
from llm_influence.attribution.shapley import regress
from llm_influence.attribution.shapley_process import CoalitionKernel, estimate, kernels, plan
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.numerics import (
    by_leverage,
    certain_coalitions,
    every_coalition,
    exact_shapley,
    shapley_weights,
)
from llm_influence.run import Run

EVENTS = 10
EVALUATIONS = (50, 100, 200, 400)
EVERY = every_coalition(EVENTS)
PARSER = arguments(
    __doc__,
    "shapley_estimators",
    threads=None,
    model={"type": Path, "required": True, "help": "folder that `finetune` wrote"},
    users=40,
    removal="drop",
)
Game = Callable[[np.ndarray], np.ndarray]
Estimator = Callable[[Game, int, np.random.Generator], np.ndarray]


def value_tables(run: Run, users: int, removal: str, path: Path) -> np.ndarray:
    """(users, 1024) values of all coalitions, users drawn with seed 0; kept in a file."""
    tables = dict(np.load(path)) if path.exists() else {}
    found = list(tables.get(removal, []))[:users]
    examples = run.split.validation
    long = np.flatnonzero(examples.positions >= run.model.encoder.max_events)
    for question in np.random.default_rng(0).permutation(long)[len(found) : users]:
        history = examples.history(int(question)).keep(slice(-EVENTS, None))
        values = ValueFunction(run.model, [history], bind("top1", run.model, [history]), removal)
        found.append(values([EVERY])[0])
        np.savez(path, **{**tables, removal: np.stack(found)})
        print(f"{removal}: {len(found)} of {users} histories", flush=True)
    return np.stack(found)


def with_replacement(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """KernelSHAP as it was first written: sizes by the kernel, single sets, repeats allowed."""
    sizes = np.arange(1, EVENTS)
    chance = 1 / (sizes * (EVENTS - sizes))
    masks = np.zeros((evaluations, EVENTS), dtype=bool)
    masks[1] = True
    for mask in masks[2:]:
        size = draw.choice(sizes, p=chance / chance.sum())
        mask[draw.choice(EVENTS, size, replace=False)] = True
    values, equal = game(masks), 0.0
    equal = (values[1] - values[0]) / EVENTS
    centre = np.eye(EVENTS) - 1 / EVENTS
    rest = values[2:] - values[0] - equal * masks[2:].sum(1)
    return centre @ np.linalg.lstsq(masks[2:] @ centre, rest, rcond=None)[0] + equal


def permutations(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """Random orders, each forwards and backwards, as many pairs as the evaluations allow."""
    scores = []
    for _ in range(max(1, (evaluations - 2) // (2 * (EVENTS - 1)))):
        order = draw.permutation(EVENTS)
        for walk in (order, order[::-1]):
            met = np.argsort(walk) < np.arange(EVENTS + 1)[:, None]
            scores.append(np.empty(EVENTS))
            scores[-1][walk] = np.diff(game(met))
    return np.mean(scores, axis=0)


def linear(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """Paired leverage sampling without replacement, regression."""
    masks = by_leverage(draw, EVENTS, evaluations)
    return regress(masks, game(masks))


def odd_ridge(order: int, *, correct: bool) -> Estimator:
    """Ridge regression of the odd half of the game on products of up to ``order`` players.

    Shapley values depend on (f(S) - f(complement)) / 2 alone, where pairs drop out. Strengths of
    the orders and of the ridge by leave-one-out error. ``correct`` adds the Shapley weights of
    what is left at the sets seen, so that all sets give the exact values.
    """
    half = EVERY[EVERY[:, 0]]
    signs = 2.0 * half - 1
    weights = 2 * shapley_weights(half).T
    products = {
        k: np.stack([signs[:, list(c)].prod(1) for c in combinations(range(EVENTS), k)], axis=1)
        for k in range(1, order + 1, 2)
    }
    grams = [products[1] @ products[1].T / EVENTS]
    for k in range(3, order + 1, 2):
        part = products[k] @ products[k].T / products[k].shape[1]
        grams = [gram + share * part for gram in grams for share in (0.03, 0.1, 0.3, 1.0)]

    def fit(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
        masks = by_leverage(draw, EVENTS, evaluations)
        seen = np.unique((masks * (1 << np.arange(EVENTS))).sum(1)[masks[:, 0]] >> 1)
        odd = (game(half[seen]) - game(~half[seen])) / 2
        best = None
        for gram in grams:
            for ridge in (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
                inverse = np.linalg.inv(gram[np.ix_(seen, seen)] + ridge * np.eye(len(seen)))
                error = ((inverse @ odd / inverse.diagonal()) ** 2).sum()
                if best is None or error < best[0]:
                    best = (error, gram[:, seen] @ (inverse @ odd))
        fitted = best[1]
        if correct:
            fitted[seen] = odd
        return weights @ fitted

    return fit


def process(
    draw_masks: Callable[..., np.ndarray] = plan,
    kinds: Callable[[CoalitionKernel], CoalitionKernel] = lambda kernel: kernel,
) -> Estimator:
    """The Gaussian process, or a part of it."""
    among = list(dict.fromkeys(kinds(kernel) for kernel in kernels(EVENTS)))

    def fit(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
        masks = draw_masks(draw, EVENTS, evaluations)
        return estimate(masks, game(masks), among).scores

    return fit


def shap_explainer(name: str) -> Estimator:
    """An explainer of the shap package with its defaults."""
    import shap

    logging.getLogger("shap").setLevel(logging.ERROR)

    def fit(game: Game, evaluations: int, draw: np.random.Generator) -> np.ndarray:
        def model(rows: np.ndarray) -> np.ndarray:
            return game(np.asarray(rows) > 0.5)

        seed = int(draw.integers(2**31))
        np.random.seed(seed)
        none, whole = np.zeros((1, EVENTS)), np.ones((1, EVENTS))
        if name == "kernel":
            explainer = shap.KernelExplainer(model, none)
            return explainer.shap_values(whole, nsamples=evaluations, silent=True)[0]
        explainer = shap.PermutationExplainer(model, none, seed=seed)
        return explainer(whole, max_evals=max(evaluations, 2 * EVENTS + 1), silent=True).values[0]

    return fit


def estimators() -> dict[str, Estimator]:
    """Everything compared, by name."""
    known: dict[str, Estimator] = {
        "process (method shapley)": process(),
        "process, sets by leverage instead of its own plan": process(by_leverage),
        "process, does not know the last event": process(
            kinds=lambda kernel: CoalitionKernel(kernel.theta, kernel.width, 0.0)
        ),
        "process, does not know sizes": process(
            kinds=lambda kernel: CoalitionKernel(kernel.theta, 1e6, kernel.last)
        ),
        "ridge of order 5 on the odd half, corrected": odd_ridge(5, correct=True),
        "ridge of order 3 on the odd half, corrected": odd_ridge(3, correct=True),
        "ridge of order 3 on the odd half": odd_ridge(3, correct=False),
        "linear (paired leverage regression)": linear,
        "kernel sampling with replacement": with_replacement,
        "antithetic permutations": permutations,
    }
    if find_spec("shap"):
        known["shap KernelExplainer"] = shap_explainer("kernel")
        known["shap PermutationExplainer"] = shap_explainer("permutation")
    return known


def errors(table: np.ndarray, estimator: Estimator, evaluations: int, seed: int) -> float:
    """Relative RMSE of one estimate."""
    exact = exact_shapley(table)
    scores = estimator(
        lambda masks: table[masks @ (1 << np.arange(EVENTS))],
        evaluations,
        np.random.default_rng([seed, evaluations]),
    )
    return float(np.sqrt(np.mean((scores - exact) ** 2)) / exact.std())


def coverage(tables: np.ndarray, evaluations: int) -> float:
    """Share of true values within two standard errors of the process."""
    within = []
    for seed, table in enumerate(tables):
        masks = plan(np.random.default_rng([seed, evaluations]), EVENTS, evaluations)
        found = estimate(masks, table[masks @ (1 << np.arange(EVENTS))])
        distance = np.abs(found.scores - exact_shapley(table))
        within.append(distance <= 2 * found.standard_errors)
    return float(np.mean(within))


def main(options: argparse.Namespace) -> None:
    """Compute the tables, compare, write."""
    options.work.mkdir(parents=True, exist_ok=True)
    run = Run.open(options.model)
    run.model.eval()
    tables = value_tables(run, options.users, options.removal, options.work / "tables.npz")
    rows: list[Row] = []
    for name, estimator in estimators().items():
        for number in EVALUATIONS:
            own = [errors(table, estimator, number, n) for n, table in enumerate(tables)]
            low, middle, high = map(float, np.quantile(own, [0.25, 0.5, 0.75]))
            more = {"mean": float(np.mean(own)), "evaluations": number}
            task = f"{number} evaluations"
            rows.append(row_of(name, task, "relative_rmse_median", middle, low, high, **more))
            print(f"{name:52s} {number:4d} evaluations: median {middle:.3f}", flush=True)
    at_200 = {row["system"]: row["value"] for row in rows if row["evaluations"] == 200}
    ours = at_200["process (method shapley)"]
    others = ["kernel sampling with replacement", "antithetic permutations"]
    others += [name for name in at_200 if name.startswith("shap ")]
    write_benchmark(
        options.output,
        name="Estimators of Shapley values at equal evaluations",
        protocol={
            "games": f"{len(tables)} validation histories, last {EVENTS} events, target top1, "
            f"removal {options.removal}; all {len(EVERY)} coalitions known",
            "error": "RMSE against the exact values over their standard deviation; median, "
            "quartiles and mean over histories, one draw each",
            "certain_coalitions": len(certain_coalitions(EVENTS)),
        },
        rows=rows,
        figures={
            "relative_rmse_200": ours,
            "relative_rmse_200_linear": at_200["linear (paired leverage regression)"],
            "relative_rmse_200_best_other": min(at_200[name] for name in others),
            "error_ratio_200": ours / min(at_200[name] for name in others),
            "within_two_standard_errors_200": coverage(tables, 200),
        },
        seeds=[0],
    )


if __name__ == "__main__":
    main(started(PARSER))
