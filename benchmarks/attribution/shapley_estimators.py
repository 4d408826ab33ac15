"""Estimators of Shapley values on games with known values: shapley_estimators.json.

    python -m benchmarks.attribution.shapley_estimators --model runs/movielens_100k [--users 40]
        [--shapiq ENVIRONMENT/bin/python]

A game of 10 players is a user's validation history, its last ten events, target top1: all 1,024
coalitions are computed once and kept in ``--work``. Games of 20 and 50 players are drawn from the
memory's formula (see `games`). Every estimator gets the same number of coalitions. The error is the
RMSE against the known values divided by their standard deviation. The seconds are those of the
estimator alone, since values are looked up. Peers take part where they are installed; shapiq runs
in its own environment on the same games.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.attribution.games import Game, MemoryGame, TableGame, save_games
from benchmarks.attribution.masked_function import Floats, Function
from benchmarks.attribution.truth import relative_rmse
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
    unique,
)
from llm_influence.run import Run
from llm_influence.types import BoolArray, FloatArray

EVENTS = 10
LONG = (20, 50)
EVALUATIONS = (50, 100, 200, 400)
EVERY = every_coalition(EVENTS)
OURS = "process (method shapley)"
SHAPIQ = ("ProxySHAP", "RegressionMSR", "OddSHAP", "KernelSHAP")
"""Methods of shapiq that see every game; ShaplEIG takes minutes a game."""
PARSER = arguments(
    __doc__,
    "shapley_estimators",
    model={"type": Path, "required": True, "help": "folder that `finetune` wrote"},
    users=40,
    long_games=(20, "games of 20 and of 50 events"),
    removal="drop",
    shapiq={"type": Path, "help": "Python of the environment that has shapiq"},
    shapleig={"type": Path, "help": "the same for ShaplEIG, which needs torch and botorch"},
    shapleig_games=4,
    shapleig_evaluations=[50, 100],
)
Estimator = Callable[[Function, int, np.random.Generator], np.ndarray]


class GameFunction(Function):
    """A game as the function that peers explain."""

    def __init__(self, game: Game) -> None:
        super().__init__(game.players)
        self._game = game

    def values(self, masks: BoolArray) -> Floats:
        """Look up or compute."""
        return self._game.values(masks)


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


def with_replacement(game: Function, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """KernelSHAP as it was first written: sizes by the kernel, single sets, repeats allowed."""
    players = game.size
    sizes = np.arange(1, players)
    chance = 1 / (sizes * (players - sizes))
    masks = np.zeros((evaluations, players), dtype=bool)
    masks[1] = True
    for mask in masks[2:]:
        size = draw.choice(sizes, p=chance / chance.sum())
        mask[draw.choice(players, size, replace=False)] = True
    values, equal = game(masks), 0.0
    equal = (values[1] - values[0]) / players
    centre = np.eye(players) - 1 / players
    rest = values[2:] - values[0] - equal * masks[2:].sum(1)
    return centre @ np.linalg.lstsq(masks[2:] @ centre, rest, rcond=None)[0] + equal


def permutations(game: Function, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """Random orders, each forwards and backwards, as many pairs as the evaluations allow."""
    players, scores = game.size, []
    ends = game(np.stack([np.zeros(players), np.ones(players)]))
    for _ in range(max(1, (evaluations - 2) // (2 * (players - 1)))):
        order = draw.permutation(players)
        for walk in (order, order[::-1]):
            met = np.argsort(walk) < np.arange(1, players)[:, None]
            scores.append(np.empty(players))
            scores[-1][walk] = np.diff(np.concatenate([ends[:1], game(met), ends[1:]]))
    return np.mean(scores, axis=0)


def linear(game: Function, evaluations: int, draw: np.random.Generator) -> np.ndarray:
    """Paired leverage sampling without replacement, regression."""
    masks = by_leverage(draw, game.size, evaluations)
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

    def fit(game: Function, evaluations: int, draw: np.random.Generator) -> np.ndarray:
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


@dataclass(frozen=True, slots=True)
class OddKernel:
    """A covariance under which the odd and the even part of a game are independent.

    Shapley values depend on the odd part, (f(S) - f(complement)) / 2, alone. The covariance of the
    odd part is (k(S, T) - k(S, complement of T)) / 2 with k made symmetric under complements.
    """

    whole: CoalitionKernel

    def __call__(self, a: BoolArray, b: BoolArray) -> FloatArray:
        """(A, B) covariances of coalitions (A, n) and (B, n)."""
        return (self.whole(a, b) + self.whole(~a, ~b)) / 2

    def shapley(self, masks: BoolArray) -> FloatArray:
        """(M, n) Shapley values of the games ``S -> k(S, masks[m])``."""
        return (self.whole.shapley(masks) - self.whole.shapley(~masks)) / 2

    def shapley_variance(self, players: int) -> FloatArray:
        """(n,) variance of the Shapley values of a game drawn with this covariance."""
        return self.whole.shapley_variance(players)


def paired_plan(draw: np.random.Generator, players: int, number: int) -> BoolArray:
    """The sets of `plan`, each followed by its complement."""
    masks = plan(draw, players, number)
    return unique(np.stack([masks, ~masks], axis=1).reshape(-1, players))[:number]


def process(
    draw_masks: Callable[..., np.ndarray] = plan,
    kinds: Callable[[CoalitionKernel], list] = lambda kernel: [kernel],
) -> Estimator:
    """The Gaussian process, or a part of it."""

    def fit(game: Function, evaluations: int, draw: np.random.Generator) -> np.ndarray:
        among = [kind for kernel in kernels(game.size) for kind in kinds(kernel)]
        masks = draw_masks(draw, game.size, evaluations)
        return estimate(masks, game(masks), list(dict.fromkeys(among))).scores

    return fit


def peer(explain: Callable[[Function, int, int], Floats]) -> Estimator:
    """A method of shap or Captum, at the setting of the comparison of seconds."""
    return lambda game, evaluations, draw: explain(game, evaluations, int(draw.integers(2**31)))


def estimators(players: int) -> dict[str, Estimator]:
    """Everything compared at this number of players, by name."""
    known: dict[str, Estimator] = {
        OURS: process(),
        "process, paired sets": process(paired_plan),
        "process, odd-projected covariance": process(kinds=lambda kernel: [OddKernel(kernel)]),
        "process, odd-projected covariance, paired sets": process(
            paired_plan, lambda kernel: [OddKernel(kernel)]
        ),
        "process, odd-projected covariances added": process(
            kinds=lambda kernel: [kernel, OddKernel(kernel)]
        ),
        "process, sets by leverage instead of its own plan": process(by_leverage),
        "linear (paired leverage regression)": linear,
        "kernel sampling with replacement": with_replacement,
        "antithetic permutations": permutations,
    }
    if players == EVENTS:
        known |= {
            "process, does not know the last event": process(
                kinds=lambda kernel: [CoalitionKernel(kernel.theta, kernel.width, 0.0)]
            ),
            "process, does not know sizes": process(
                kinds=lambda kernel: [CoalitionKernel(kernel.theta, 1e6, kernel.last)]
            ),
            "ridge of order 5 on the odd half, corrected": odd_ridge(5, correct=True),
            "ridge of order 3 on the odd half, corrected": odd_ridge(3, correct=True),
            "ridge of order 3 on the odd half": odd_ridge(3, correct=False),
        }
    if find_spec("shap"):
        from benchmarks.attribution import shap_peer

        known["shap KernelExplainer"] = peer(shap_peer.kernel)
        known["shap PermutationExplainer"] = peer(shap_peer.permutation)
    if find_spec("captum"):
        from benchmarks.attribution import captum_peer

        known["captum KernelShap"] = peer(captum_peer.kernel_shap)
        known["captum ShapleyValueSampling"] = peer(captum_peer.shapley_sampling)
    return known


def task_of(players: int, evaluations: int) -> str:
    """Name of a column of the table."""
    return ("" if players == EVENTS else f"{players} events, ") + f"{evaluations} evaluations"


def summary(
    system: str, players: int, evaluations: int, errors: list[float], seconds: list[float]
) -> Row:
    """One row, printed."""
    low, middle, high = map(float, np.quantile(errors, [0.25, 0.5, 0.75]))
    median = float(np.median(seconds))
    print(f"{system:50s} {players} {evaluations}: {middle:.3f}, {median:.3f} s", flush=True)
    more = {
        "mean": float(np.mean(errors)),
        "evaluations": evaluations,
        "events": players,
        "seconds": median,
        "games": len(errors),
    }
    task = task_of(players, evaluations)
    return row_of(system, task, "relative_rmse_median", middle, low, high, **more)


def compared(games: list[Game]) -> list[Row]:
    """Rows of all estimators of this environment; a budget that one cannot keep has none."""
    rows, players = [], games[0].players
    for name, estimator in estimators(players).items():
        for number in EVALUATIONS:
            errors, seconds = [], []
            if name.startswith("process") and number < len(certain_coalitions(players)):
                continue
            for seed, game in enumerate(games):
                function, draw = GameFunction(game), np.random.default_rng([seed, number])
                begun = time.perf_counter()
                scores = estimator(function, number, draw)
                seconds.append(time.perf_counter() - begun)
                errors.append(relative_rmse(scores, game.shapley))
                if function.evaluations > 1.1 * number:
                    break
            else:
                rows.append(summary(name, players, number, errors, seconds))
    return rows


def of_shapiq(games: list[Game], options: argparse.Namespace) -> list[Row]:
    """Rows of shapiq's methods, which run in their own environment."""
    players = games[0].players
    path = options.work / f"games_{players}.npz"
    save_games(games, path)
    output = options.work / f"shapiq_{players}.jsonl"
    runs = [(options.shapiq, SHAPIQ, EVALUATIONS, len(games))]
    if options.shapleig:
        fewer = [number for number in options.shapleig_evaluations if number > players + 1]
        runs.append((options.shapleig, ("ShaplEIG",), fewer, options.shapleig_games))
    for python, methods, evaluations, count in runs:
        if not evaluations:
            continue
        words = [python, "-m", "benchmarks.peers.shapiq_peer", path, output]
        words += ["--methods", *methods, "--evaluations", *evaluations, "--count", count]
        subprocess.run([str(word) for word in words], check=True)
    records: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        method, _, number, evaluations = record["key"]
        error = relative_rmse(np.array(record["scores"]), games[number].shapley)
        records.setdefault((method, evaluations), []).append((error, record["seconds"]))
    return [
        summary(f"shapiq {method}", players, evaluations, *map(list, zip(*own, strict=True)))
        for (method, evaluations), own in records.items()
    ]


def figures_of(rows: list[Row]) -> dict[str, float]:
    """Our errors at 200 evaluations, and their ratios to the best of the others."""
    figures = {}
    for players in (EVENTS, *LONG):
        at_200 = {
            str(row["system"]): float(row["value"])
            for row in rows
            if row["evaluations"] == 200 and row["events"] == players
        }
        others = [name for name in at_200 if name.startswith(("shap ", "captum ", "shapiq "))]
        others += ["kernel sampling with replacement", "antithetic permutations"]
        present = [at_200[name] for name in others if name in at_200]
        shapiq = [at_200[name] for name in others if name.startswith("shapiq ")]
        end = "" if players == EVENTS else f"_{players}"
        figures[f"relative_rmse_200{end}"] = at_200[OURS]
        figures[f"relative_rmse_200_linear{end}"] = at_200["linear (paired leverage regression)"]
        figures[f"relative_rmse_200_best_other{end}"] = min(present)
        figures[f"error_ratio_200{end}"] = at_200[OURS] / min(present)
        if shapiq:
            figures[f"error_ratio_200_shapiq_{players}"] = at_200[OURS] / min(shapiq)
    return figures


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
    """Compute the games, compare, write."""
    options.work.mkdir(parents=True, exist_ok=True)
    run = Run.open(options.model)
    run.model.eval()
    tables = value_tables(run, options.users, options.removal, options.work / "tables.npz")
    sets: list[list[Game]] = [[TableGame(table, exact_shapley(table)) for table in tables]]
    sets += [[MemoryGame.drawn(n, seed) for seed in range(options.long_games)] for n in LONG]
    rows: list[Row] = []
    for games in sets:
        rows += compared(games)
        if options.shapiq:
            rows += of_shapiq(games, options)
    error = max(game.error for games in sets for game in games)
    write_benchmark(
        options.output,
        name="Estimators of Shapley values at equal evaluations",
        protocol={
            "games": f"{len(tables)} validation histories, last {EVENTS} events, target top1, "
            f"removal {options.removal}; all {len(EVERY)} coalitions known",
            "long_games": f"{options.long_games} games of {LONG} players by the memory's formula, "
            "drawn without regard to any estimator; Shapley values by 10,000 antithetic pairs of "
            f"permutations, relative standard error at most {error:.4f}",
            "error": "RMSE against the known values over their standard deviation; median, "
            "quartiles and mean over games, one draw each",
            "seconds": "of the estimator alone, median, one thread: values are looked up",
            "shapiq": "1.6.0, defaults, order 1, KernelSHAP with pairs. ShaplEIG: refit decaying, "
            f"the first {options.shapleig_games} games (if its environment was given)",
            "certain_coalitions": len(certain_coalitions(EVENTS)),
        },
        rows=rows,
        figures=figures_of(rows) | {"within_two_standard_errors_200": coverage(tables, 200)},
        seeds=[0],
    )


if __name__ == "__main__":
    main(started(PARSER))
