"""Rendering histories into tokens beside `datasets.map`: docs/benchmarks/rendering.json.

    python -m benchmarks.data.rendering [--repeats 7]

Cuts MovieLens-100K into windows of events, encodes them in style ``text`` and compares with the
same texts, rendered beforehand, through the same fast tokenizer in `datasets.Dataset.map`. Checks
that all systems give the same ids.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.harness import arguments, started, write_benchmark
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.assets import asset_path
from llm_influence.datasets.public import load_movielens_100k
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.types import History

WINDOW = 50
TEMPLATE = "prose"
TOKENIZER = "minilm"
BATCH_SIZES = (100, 1000, 5000)
PARSER = arguments(__doc__, "rendering", threads=None, repeats=7)
PROTOCOL = {
    "log": f"MovieLens-100K, every history cut into windows of {WINDOW} events",
    "rendering": f"style text, template {TEMPLATE!r}, nothing truncated; tokenizer of {TOKENIZER}",
    "llm_influence": "cold: a new Encoder and its first encode, every text part tokenised; warm: "
    "encode again. Its result also maps every token to its event and field",
    "datasets.map": "the same texts already in a Dataset in memory (their rendering is not "
    "counted), batched, ids alone returned, no cache file; the best batch size of those tried",
    "tokenizer": "the fast tokenizer called once on the list of all texts, for orientation",
    "clock": "median over runs in one process, systems in turn, after one run of each unmeasured; "
    "garbage is collected before each. cpu_seconds are those of all threads of the process",
    "check": "ids of every window are equal for all systems",
}


def windows_of(log: BehaviorLog) -> list[History]:
    """Every history in pieces of at most `WINDOW` events, in order."""
    return list(_windows(log))


def _windows(log: BehaviorLog) -> Iterator[History]:
    for history in log:
        for start in range(0, len(history), WINDOW):
            yield history.keep(slice(start, start + WINDOW))


class Systems:
    """The systems over the same windows. Each returns ids without the start token."""

    def __init__(self, log: BehaviorLog, tokenizer: PreTrainedTokenizerBase) -> None:
        self.histories = windows_of(log)
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.fit(log)
        self.encoder = self._new_encoder()
        self.texts = [self.encoder.render(history) for history in self.histories]
        self.dataset = datasets.Dataset.from_dict({"text": self.texts})

    def _new_encoder(self) -> Encoder:
        return Encoder(
            Template.load(TEMPLATE),
            self.vocabulary,
            style="text",
            tokenizer=self.tokenizer,
            max_events=WINDOW,
            max_tokens=10**6,
        )

    def cold(self) -> object:
        """A new encoder that has tokenised nothing yet."""
        self.encoder = self._new_encoder()
        return self.encoder.encode(self.histories)

    def warm(self) -> object:
        """An encoder that has tokenised every text part."""
        return self.encoder.encode(self.histories)

    def mapped(self, batch_size: int) -> datasets.Dataset:
        """The peer."""
        return self.dataset.map(
            lambda batch: self._tokenise(batch["text"]),
            batched=True,
            batch_size=batch_size,
            keep_in_memory=True,
            load_from_cache_file=False,
            remove_columns=["text"],
        )

    def alone(self) -> object:
        """The tokenizer without the library around it."""
        return self._tokenise(self.texts)

    def _tokenise(self, texts: list[str]) -> object:
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def check(self) -> None:
        """Stop unless every system comes to the same ids."""
        expected = [[self.tokenizer.cls_token_id, *ids] for ids in self.alone()["input_ids"]]
        mapped = self.mapped(1000)["input_ids"]
        if [[self.tokenizer.cls_token_id, *ids] for ids in mapped] != expected:
            sys.exit("datasets.map and the tokenizer differ: nothing is written")
        for encoded in (self.cold(), self.warm()):
            ours = np.split(encoded.input_ids, encoded.offsets[1:-1])
            if [ids.tolist() for ids in ours] != expected or encoded.left_out.any():
                sys.exit("llm_influence and the tokenizer differ: nothing is written")


def seconds(task: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one run, without collecting what an earlier one left."""
    gc.collect()
    start, start_cpu = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - start, time.process_time() - start_cpu


def median(runs: list[tuple[float, float]], clock: int = 0) -> float:
    """Median of the wall-clock (0) or processor (1) seconds."""
    return statistics.median(run[clock] for run in runs)


def run(repeats: int, out: Path) -> None:
    """Measure everything in turn and write the figures."""
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(asset_path(TOKENIZER))
    log = load_movielens_100k()
    systems = Systems(log, tokenizer)
    systems.check()
    tasks: dict[str, Callable[[], object]] = {
        "cold": systems.cold,
        "warm": systems.warm,
        "tokenizer": systems.alone,
        **{str(size): lambda size=size: systems.mapped(size) for size in BATCH_SIZES},
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task))
    best = min(BATCH_SIZES, key=lambda size: median(times[str(size)]))
    shown = {
        ("llm_influence", "cold"): times["cold"],
        ("llm_influence", "warm"): times["warm"],
        (f"datasets.map, batch_size {best}", "ready strings"): times[str(best)],
        ("tokenizer alone", "ready strings"): times["tokenizer"],
    }
    rows = [record(*names, log.num_events, each) for names, each in shown.items()]
    measured = [times[name] for name in ("cold", "warm", str(best))]
    (cold, warm, peer), (cold_cpu, _, peer_cpu) = (
        [median(runs, clock) for runs in measured] for clock in (0, 1)
    )
    write_benchmark(
        out,
        name="rendering",
        protocol={
            **PROTOCOL,
            "events": log.num_events,
            "windows": len(systems.histories),
            "tokens": len(systems.warm().input_ids),
            "batch_sizes_tried": list(BATCH_SIZES),
            "repeats": repeats,
            "load_average": os.getloadavg()[0],
        },
        rows=rows,
        figures={
            "events_per_second": round(log.num_events / cold),
            "events_per_second_warm": round(log.num_events / warm),
            "ratio_to_datasets_map": round(peer / cold, 1),
            "ratio_warm": round(peer / warm, 1),
            "ratio_cpu": round(peer_cpu / cold_cpu, 1),
        },
    )


def record(
    system: str, task: str, events: int, runs: list[tuple[float, float]]
) -> dict[str, str | float]:
    """One flat record of all runs of one system; low and high are the extremes."""
    return {
        "system": system,
        "task": task,
        "metric": "events_per_second",
        "value": round(events / median(runs)),
        "low": round(events / max(wall for wall, _ in runs)),
        "high": round(events / min(wall for wall, _ in runs)),
        "seconds": round(median(runs), 3),
        "cpu_seconds": round(median(runs, 1), 3),
    }


def main(options: argparse.Namespace) -> None:
    """Measure and write."""
    run(options.repeats, options.output)


if __name__ == "__main__":
    main(started(PARSER))
