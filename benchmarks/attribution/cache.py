"""Measure what the KV cache saves when a history grows by one event.

    python -m benchmarks.attribution.cache [--backbone smollm2-135m] [--events 50 200] [--repeats 15]

Writes docs/benchmarks/cache.json. Heads and adapter are untrained: time does not depend on their
weights. The log is drawn at random over a small catalogue, so that the scores of items cost
little beside the backbone. Each repeat appends one event, then reads the same window whole, and
compares both answers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import write_benchmark
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.session import Session
from llm_influence.types import Event, History

ITEMS, SEED = 200, 0
BEHAVIORS = ("click", "cart", "purchase")
STYLES = {"token": "full", "text": "compact"}


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


def main(
    backbone: str, sizes: Sequence[int], repeats: int, styles: Sequence[str], out: Path, layers: int
) -> None:
    """Measure every size and style, and write."""
    rows, figures = [], {}
    for style in styles:
        model = build(backbone, style, max(sizes) + repeats, layers or None)
        for events in sizes:
            found = measure(model, events, repeats)
            gain = found["whole"] / found["cached"]
            key = f"speedup_{events}" if style == "token" else f"speedup_{events}_{style}"
            figures[key] = gain
            figures[key.replace("speedup", "difference")] = found["apart"]
            task = f"one more event after {events}, style {style}, {found['tokens']:.0f} tokens"
            rows += [
                {
                    "system": system,
                    "task": task,
                    "metric": "seconds",
                    "value": found[system],
                    "low": found[f"{system}_low"],
                }
                for system in ("cached", "whole")
            ]
            print(
                f"{task}: {found['cached']:.4f} s with the cache, {found['whole']:.4f} s whole, "
                f"{gain:.1f} times faster, logits at most {found['apart']:.1e} apart",
                flush=True,
            )
    write_benchmark(
        out,
        name="cache",
        protocol={
            "backbone": backbone,
            "layers": layers or "all",
            "weights": "of the backbone; heads and adapter untrained, which costs the same time",
            "cached": "Session.append: rendering, the new event's tokens, the scores of all",
            "whole": "Session.reread of the same window",
            "value": f"median of {repeats}; low: the fastest",
            "items": ITEMS,
            "threads": torch.get_num_threads(),
            "precision": "float32",
        },
        rows=rows,
        figures=figures,
        seeds=[SEED],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--events", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["token"])
    parser.add_argument("--layers", type=int, default=0, help="0: all of the backbone's")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/cache.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    main(
        options.backbone,
        options.events,
        options.repeats,
        options.styles,
        options.out,
        options.layers,
    )
