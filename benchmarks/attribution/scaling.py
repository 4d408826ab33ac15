"""The cost of an explanation by history and catalogue: docs/benchmarks/attribution_scaling.json.

    python -m benchmarks.attribution.scaling [--core 0] [--seconds 20]

Explanations a second on one core, by method, for histories of 10, 50 and 200 events and catalogues
of 2,000 and 100,000 items. The model is a MiniLM with untrained heads over a random log: speed does
not depend on them. Each method runs with its defaults, one history after the other.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
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


PARSER = arguments(
    __doc__,
    "attribution_scaling",
    backbone="minilm",
    layers=(3, "0: all of the backbone's"),
    events=list(EVENTS),
    items=list(ITEMS),
    methods={"nargs": "+", "choices": METHODS, "help": "default: all"},
    users=32,
    seconds=(20.0, "of a method and size"),
)


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


def build(backbone: str, layers: int, log: BehaviorLog) -> InfluenceModel:
    """An untrained model with one token an event and room for the longest history."""
    config = RunConfig.model_validate(
        {
            "model": {"backbone": backbone, "layers": layers or None},
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


def measure(model: InfluenceModel, method: str, histories: list[History], seconds: float) -> Row:
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
    names = ("backbone", "layers", "seconds", "users")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    rows: list[Row] = []
    with threadpool_limits(1):
        log = random_log(options.users, max(EVENTS), min(ITEMS))
        model = build(options.backbone, options.layers, log)
        for items in sorted(options.items):
            grow(model, items)
            for events in sorted(options.events):
                histories = [_last(history, events) for history in log]
                for method in options.methods or METHODS:
                    measured = results.keep(
                        f"{method}, {events} events, {items} items",
                        lambda m=method, h=histories: measure(model, m, h, options.seconds),
                    )
                    rate = measured.pop("value", None)
                    size = {"events": events, "items": items, **measured}
                    rows.append(row_of(method, "explain", "explanations_per_second", rate, **size))
    figures = {
        f"{row['system']}_{row['events']}_events_{row['items']}_items": row["value"]
        for row in rows
        if row["value"] is not None
    }
    write_benchmark(
        options.output,
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


if __name__ == "__main__":
    main(started(PARSER))
