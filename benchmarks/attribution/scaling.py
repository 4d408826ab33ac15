"""Measure how the cost of an explanation grows with the history and the catalogue.

    python -m benchmarks.attribution.scaling [--core 0] [--seconds 20]

Writes docs/benchmarks/attribution_scaling.json: explanations a second on one core, by method, for
histories of 10, 50 and 200 events and catalogues of 2,000 and 100,000 items. The model is a
MiniLM whose heads and residuals are untrained, over a random log: speed does not depend on them.
Each method runs with its defaults, one history after the other; one that refuses a history so
long says so in its row. Rows are kept in --work as they come.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from benchmarks.attribution.store import Record, Store
from benchmarks.harness import write_benchmark
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.target import Item
from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History

EVENTS, ITEMS = (10, 50, 200), (2_000, 100_000)
BEHAVIORS, SEED = ("click", "cart", "purchase"), 0
TARGET = Item("i0")
"""One item for all histories: finding the best one is no part of an explanation's cost."""


@dataclass(frozen=True, slots=True)
class Size:
    """Events a history and items in the catalogue."""

    events: int
    items: int


def random_log(users: int, events: int, items: int) -> BehaviorLog:
    """Users with as many random events each, over the first ``items`` of the catalogue."""
    draw, count = np.random.default_rng(SEED), users * events
    ids = [f"i{n}" for n in range(items)]
    table = pa.table(
        {
            "user_id": np.repeat([f"u{n}" for n in range(users)], events),
            "item_id": np.array(ids)[draw.integers(1, items, count)],
            "behavior": np.array(BEHAVIORS)[draw.integers(len(BEHAVIORS), size=count)],
            "timestamp": 1_700_000_000 + np.cumsum(draw.integers(60, 86_400, size=count)),
            "value": draw.integers(1, 6, size=count).astype(np.float64),
        }
    )
    titles = [f"film number {n}" for n in range(items)]
    return BehaviorLog.read(table, items=pa.table({"item_id": ids, "title": titles}))


def build(backbone: str, layers: int | None, log: BehaviorLog) -> InfluenceModel:
    """An untrained model with one token an event and room for the longest history."""
    config = RunConfig.model_validate(
        {
            "model": {"backbone": backbone, "layers": layers},
            "rendering": {"style": "token", "template": "fused", "max_events": max(EVENTS)},
        }
    )
    return InfluenceModel.build(config, log).eval()


def grow(model: InfluenceModel, items: int) -> None:
    """Fill the catalogue up with items whose text vectors are drawn at random.

    What `InfluenceModel.add_items` does, without reading 100,000 texts.
    """
    known = len(model.catalogue)
    if items == known:
        return
    new = Catalogue.from_ids([f"i{n}" for n in range(known, items)])
    generator = torch.Generator().manual_seed(SEED)
    vectors = torch.randn(len(new), model.embeddings.words.shape[1], generator=generator)
    vocabulary = model.encoder.vocabulary.with_catalogue(model.catalogue.extend(new))
    model.embeddings.extend(vectors)
    model.encoder = model.encoder.with_vocabulary(vocabulary)


def measure(model: InfluenceModel, method: str, histories: list[History], seconds: float) -> Record:
    """Explanations a second: at least two, until the time is over; the first one only warms."""
    explainer = Explainer(model, method)
    try:
        explainer.explain(histories[0], TARGET)
    except ExplanationError as error:
        return {"refused": str(error).splitlines()[0]}
    evaluations, done, begun = [], 0, time.perf_counter()
    while done < 2 or (time.perf_counter() - begun < seconds and done < len(histories)):
        found = explainer.explain(histories[done % len(histories)], TARGET)
        evaluations.append(found.quality.evaluations)
        done += 1
    rate = done / (time.perf_counter() - begun)
    return {"value": rate, "evaluations": float(np.mean(evaluations)), "explanations": done}


def main(options: argparse.Namespace) -> None:
    """Measure every method at every size and write."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    store = Store(options.work, {"backbone": options.backbone, "layers": options.layers})
    rows: list[Record] = []
    with threadpool_limits(1):
        log = random_log(options.users, max(EVENTS), min(ITEMS))
        model = build(options.backbone, options.layers or None, log)
        for items in sorted(options.items):
            grow(model, items)
            for events in sorted(options.events):
                histories = [_last(history, events) for history in log]
                rows += [
                    _row(store, model, method, histories, Size(events, items), options.seconds)
                    for method in options.methods or METHODS
                ]
    figures = {
        f"{row['system']}_{row['events']}_events_{row['items']}_items": row["value"]
        for row in rows
        if "value" in row
    }
    write_benchmark(
        options.out,
        name="attribution_scaling",
        protocol={
            "model": f"{options.backbone}, {options.layers or 'all'} layers, one token an event; "
            "heads and residuals untrained, text vectors beyond 2,000 items random",
            "threads": "one",
            "value": "explanations a second, one history after the other, defaults of the method; "
            f"at least 2, until {options.seconds:g} s are over",
            "target": "log-odds of one item against all others",
            "rendering_and_records": "inside the clock",
        },
        rows=rows,
        figures=figures,
        seeds=[SEED],
    )


def _last(history: History, events: int) -> History:
    return history.keep(np.arange(len(history)) >= len(history) - events)


def _row(
    store: Store,
    model: InfluenceModel,
    method: str,
    histories: list[History],
    size: Size,
    seconds: float,
) -> Record:
    key = f"{method}, {size.events} events, {size.items} items"
    found = store.keep(key, lambda: measure(model, method, histories, seconds))
    task = {"task": "explain", "metric": "explanations_per_second"}
    return {"system": method, **task, "events": size.events, "items": size.items, **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--layers", type=int, default=3, help="0: all of the backbone's")
    parser.add_argument("--events", type=int, nargs="+", default=EVENTS)
    parser.add_argument("--items", type=int, nargs="+", default=ITEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="a method and size")
    parser.add_argument("--core", type=int, help="pin the process to this core")
    work = Path("runs/attribution_speed/scaling.jsonl")
    parser.add_argument("--work", type=Path, default=work, help="measurements so far")
    out = Path("docs/benchmarks/attribution_scaling.json")
    parser.add_argument("--out", type=Path, default=out)
    main(parser.parse_args())
