"""The KV cache when a history grows by one event: docs/benchmarks/cache.json.

    python -m benchmarks.attribution.cache [--backbone smollm2-135m] [--events 50 200]

Heads and adapter are untrained: time does not depend on their weights. The log is random over a
small catalogue, so that the scores of items cost little. Each repeat appends one event, then reads
the same window whole, and compares both predictions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import arguments, row_of, started, write_benchmark
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.session import Session
from llm_influence.types import Event, History

ITEMS, SEED = 200, 0
BEHAVIORS = ("click", "cart", "purchase")
STYLES = {"token": "full", "text": "compact"}
PARSER = arguments(
    __doc__,
    "cache",
    threads=None,
    backbone="smollm2-135m",
    events=[50, 200],
    repeats=15,
    styles={"nargs": "+", "choices": STYLES, "default": ["token"]},
    layers=(int, "of the backbone; default: all"),
)


def random_events(count: int) -> list[Event]:
    """Events a minute to a day apart."""
    draw = np.random.default_rng(SEED)
    times = 1_700_000_000 + np.cumsum(draw.integers(60, 86_400, size=count))
    return [
        Event(
            f"i{draw.integers(ITEMS)}",
            BEHAVIORS[draw.integers(3)],
            int(time),
            float(draw.integers(1, 6)),
        )
        for time in times
    ]


def build(backbone: str, style: str, most: int, layers: int | None) -> InfluenceModel:
    """An untrained model that has room for ``most`` events."""
    events = random_events(1000)
    columns = ("item", "behavior", "timestamp", "value")
    table = {name: [getattr(event, name) for event in events] for name in columns}
    table = {"user_id": ["u"] * len(events), "item_id": table.pop("item"), **table}
    ids = [f"i{n}" for n in range(ITEMS)]
    items = pa.table({"item_id": ids, "title": [f"film number {n}" for n in range(ITEMS)]})
    config = RunConfig.model_validate(
        {
            "model": {"backbone": backbone, "layers": layers},
            "rendering": {"style": style, "template": STYLES[style], "max_events": most},
        }
    )
    log = BehaviorLog.read(pa.table(table), items=items, duplicates="keep")
    return InfluenceModel.build(config, log).eval()


def timed(session: Session, work: Callable[[], None]) -> tuple[float, torch.Tensor]:
    """Seconds of reading and predicting, and the item logits."""
    begun = time.perf_counter()
    work()
    logits = session.prediction.item_logits
    return time.perf_counter() - begun, logits


def measure(model: InfluenceModel, events: int, repeats: int) -> dict[str, float]:
    """Seconds of one more event with the cache and without, around ``events`` events."""
    stream = random_events(events + repeats)
    session = model.session(History.from_events("u", stream[:events]))
    session.reread()  # warms what is made once
    cached, whole, apart = [], [], 0.0
    for event in stream[events:]:
        seconds, ours = timed(session, lambda event=event: session.append(event))
        cached.append(seconds)
        seconds, theirs = timed(session, session.reread)
        whole.append(seconds)
        apart = max(apart, (ours - theirs).abs().max().item())
    if session.readings != 2 + repeats:  # the first, the warming one, and one a repeat
        raise SystemExit("the window slid: the model has no room for that many events")
    tokens = model.encoder.encode([session.window]).input_ids.size
    return {
        "cached": statistics.median(cached),
        "whole": statistics.median(whole),
        "cached_low": min(cached),
        "whole_low": min(whole),
        "tokens": tokens,
        "apart": apart,
    }


def main(options: argparse.Namespace) -> None:
    """Measure every size and style, and write."""
    rows, figures = [], {}
    for style in options.styles:
        most = max(options.events) + options.repeats
        model = build(options.backbone, style, most, options.layers)
        for events in options.events:
            values = measure(model, events, options.repeats)
            key = f"speedup_{events}" if style == "token" else f"speedup_{events}_{style}"
            figures[key] = values["whole"] / values["cached"]
            figures[key.replace("speedup", "difference")] = values["apart"]
            task = f"one more event after {events}, style {style}, {values['tokens']:.0f} tokens"
            for system in ("cached", "whole"):
                low = values[f"{system}_low"]
                rows.append(row_of(system, task, "seconds", values[system], low))
            print(f"{task}: {figures[key]:.1f} times faster", flush=True)
    write_benchmark(
        options.output,
        name="cache",
        protocol={
            "backbone": options.backbone,
            "layers": options.layers or "all",
            "weights": "of the backbone; heads and adapter untrained, which costs the same time",
            "cached": "Session.append: rendering, the new event's tokens, the scores of all",
            "whole": "Session.reread of the same window",
            "value": f"median of {options.repeats}; low: the fastest",
            "items": ITEMS,
            "threads": torch.get_num_threads(),
            "precision": "float32",
        },
        rows=rows,
        figures=figures,
        seeds=[SEED],
    )


if __name__ == "__main__":
    main(started(PARSER))
