"""shapiq's estimators of Shapley values on games that a file holds.

    python -m benchmarks.peers.shapiq_peer GAMES.npz OUTPUT.json --evaluations 50 100 200 400

It runs in an environment of its own (Python 3.12, benchmarks/peers/requirements_shapiq.txt).
OddSHAP, RegressionMSR, ProxySHAP and KernelSHAP have their defaults, at order 1. ShaplEIG fits its
process again on its schedule ``decaying``; it takes minutes a game, so it sees fewer games.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import shapiq

from benchmarks.attribution.games import Floats, Game, load_games


def approximator(name: str, players: int, seed: int) -> shapiq.approximator.Approximator:
    """The estimator of this name."""
    settings: dict[str, object] = {"n": players, "random_state": seed}
    if name == "RegressionMSR":
        settings["index"] = "SV"
    if name == "ProxySHAP":
        settings |= {"index": "SV", "max_order": 1}
    if name == "KernelSHAP":
        settings["pairing_trick"] = True
    if name == "ShaplEIG":
        settings |= {"refit": "decaying", "show_progress": False}
    return getattr(shapiq.approximator, name)(**settings)


def scores(name: str, game: Game, evaluations: int, seed: int) -> Floats:
    """(n,) estimates of the Shapley values."""
    found = approximator(name, game.players, seed).approximate(
        budget=evaluations, game=lambda masks: game.values(np.asarray(masks, dtype=bool))
    )
    return np.array([found[(player,)] for player in range(game.players)])


def main() -> None:
    """Estimate every game and keep scores and seconds, one record a game."""
    parser = argparse.ArgumentParser(description="shapiq's estimators on games of a file")
    parser.add_argument("games", type=Path)
    parser.add_argument("output", type=Path, help="JSON Lines; records in it are not made again")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--evaluations", type=int, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=sys.maxsize, help="of the first games alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    done = set()
    if options.output.exists():
        lines = options.output.read_text(encoding="utf-8").splitlines()
        done = {tuple(json.loads(line)["key"]) for line in lines}
    for method in options.methods:
        for number, game in enumerate(load_games(options.games)[: options.count]):
            for evaluations in options.evaluations:
                key = (method, game.players, number, evaluations)
                if key in done:
                    continue
                begun = time.perf_counter()
                found = scores(method, game, evaluations, number)
                seconds = time.perf_counter() - begun
                record = {"key": key, "scores": found.tolist(), "seconds": seconds}
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
