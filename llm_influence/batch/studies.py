"""Studies over many users: the counterfactual fairness test and faithfulness of methods."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm import tqdm

from llm_influence.attribution.recommended import seen_codes
from llm_influence.batch.shards import Failures, OnShard, Shards
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import DataError, ExplanationError, out_of_range, unknown
from llm_influence.faithfulness.evaluate import (
    ComparedMethod,
    FaithfulnessOptions,
    comparison_result,
    measure_batch,
    methods_compared,
    refuse_empty,
)
from llm_influence.faithfulness.result import (
    FaithfulnessResult,
    misleading_lines,
    plot_curves,
    to_csv,
    to_markdown,
)
from llm_influence.influence.table_files import FAIRNESS_TEST_SCHEMA, write_fairness_test
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.fingerprints import histories_fingerprint, model_fingerprint
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import BestItems, log_odds
from llm_influence.types import History
from llm_influence.utils import distributed, write_text, write_whole

MOST_VALUES = 12
"""Most values tried: the most frequent names, or numbers evenly spaced among the users."""


@dataclass(frozen=True, slots=True)
class FairnessTestResult:
    """The outcome of a fairness test.

    Attributes:
        path: The table.
        changed: By feature, the share of users whose first recommendation changes with some value.
        users: By feature, the number of users whose feature is known.
    """

    path: Path
    changed: dict[str, float]
    users: dict[str, int]


def run_fairness_test(
    model: InfluenceModel,
    log: BehaviorLog,
    features: Sequence[str],
    out: str | Path,
    *,
    k: int = 10,
    batch_size: int = 64,
    run: str = "",
    progress: bool = True,
) -> FairnessTestResult:
    """Change each feature of every user to every other value and recommend again.

    At most `MOST_VALUES` values of a feature are tried.

    Args:
        model: The model.
        log: The histories, with a user table.
        features: Columns of the user table.
        out: Folder of the influence tables; ``fairness_test.parquet`` is written there.
        k: Number of recommendations compared; items of the history are not recommended. Default 10.
        batch_size: Histories in one batch; affects only speed and memory. Default 64.
        run: Text for the ``run`` column.
        progress: Whether to show a progress bar.

    Raises:
        DataError: The log has no user table, no such feature, or all users are alike in it.
        ExplanationError: ``k`` is below 1 or above the number of items.
        OutputError: ``out`` cannot be written.
    """
    if not 1 <= k <= len(model.catalogue):
        most = f"1 to {len(model.catalogue)}, the model's number of items"
        raise out_of_range(ExplanationError, "k", k, expected=most)
    log = log.align(model.catalogue, model.encoder.vocabulary.behaviors)
    values = {name: _values(log, name) for name in dict.fromkeys(features)}
    rows: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(log), batch_size), disable=not progress, unit="batch"):
        part = [log.at(row) for row in range(start, min(start + batch_size, len(log)))]
        part = [history for history in part if len(history)]
        rows += _changed(model, part, values, k, batch_size)
    table = pa.Table.from_pylist(
        [{"run": run, "k": k, **row} for row in rows], FAIRNESS_TEST_SCHEMA
    )
    path = write_fairness_test(table, Path(out))
    return FairnessTestResult(path, *_summary(rows))


def _values(log: BehaviorLog, feature: str) -> list[str]:
    """The values of a feature to try, at most `MOST_VALUES`."""
    if log.users is None or feature not in log.users.column_names:
        columns = [] if log.users is None else log.users.column_names
        fix = "correct the name, or pass the user table that has it"
        raise unknown(DataError, "feature", feature, columns, where="user table", fix=fix)
    every = [value for value in log.users[feature].to_pylist() if value]
    values = sorted(set(every))
    if len(values) < 2:
        raise DataError(
            f"every user's {feature!r} is {values[0] if values else 'unknown'!r}",
            where="user table of the log",
            expected="at least two values",
            fix="choose another feature",
        )
    if len(values) <= MOST_VALUES:
        return values
    try:
        ordered = sorted(every, key=float)
    except ValueError:
        return sorted(name for name, _ in Counter(every).most_common(MOST_VALUES))
    places = (np.arange(MOST_VALUES) + 0.5) * len(ordered) / MOST_VALUES
    return sorted({ordered[int(place)] for place in places}, key=float)


def _changed(
    model: InfluenceModel,
    histories: Sequence[History],
    values: dict[str, list[str]],
    k: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Rows of some users, for all features and other values."""
    cases = [
        (place, name, other)
        for place, history in enumerate(histories)
        for name, known in values.items()
        for other in known
        if history.user.get(name) and other != history.user[name]
    ]
    if not cases:
        return
    top, own = _best(model, histories, k)
    first = top.codes[:, 0]
    for start in range(0, len(cases), batch_size):
        part = cases[start : start + batch_size]
        owner = torch.tensor([place for place, _, _ in part])
        changed = [_with(histories[place], name, other) for place, name, other in part]
        best, scores = _best(model, changed, k)
        after, before = log_odds(scores, first[owner]), log_odds(own[owner], first[owner])
        for row, (place, name, other) in enumerate(part):
            yield {
                "user_id": histories[place].user_id,
                "feature": name,
                "value": histories[place].user[name],
                "other": other,
                "item_id": model.catalogue.ids[int(first[place])].as_py(),
                "item_other": model.catalogue.ids[int(best.codes[row, 0])].as_py(),
                "changed": bool(best.codes[row, 0] != first[place]),
                "kept": len(_set(top, place) & _set(best, row)) / len(_set(top, place)),
                "log_odds": float(before[row]),
                "log_odds_other": float(after[row]),
            }


def _best(
    model: InfluenceModel, histories: Sequence[History], k: int
) -> tuple[BestItems, torch.Tensor]:
    """The first k of each history, and (B, I) scores of all items, on the CPU."""
    scores = model.score(histories)
    seen = seen_codes(model, histories)
    best = scores.best(k, seen=seen)
    best = BestItems(best.codes.cpu(), best.candidate.cpu(), best.log_odds.cpu())
    return best, torch.cat([part.cpu() for _, part in scores.chunks()], dim=1).double()


def _set(best: BestItems, row: int) -> set[int]:
    return set(best.codes[row][best.candidate[row]].tolist())


def _with(history: History, feature: str, value: str) -> History:
    """The same history with another value of a user feature."""
    return replace(history, user=MappingProxyType({**history.user, feature: value}))


def _summary(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    changed: dict[str, dict[str, bool]] = {}
    for row in rows:
        users = changed.setdefault(row["feature"], {})
        users[row["user_id"]] = users.get(row["user_id"], False) or row["changed"]
    shares = {name: float(np.mean(list(users.values()))) for name, users in changed.items()}
    return shares, {name: len(users) for name, users in changed.items()}


@distributed()
def measure_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | ComparedMethod],
    out: str | Path,
    options: FaithfulnessOptions | None = None,
    *,
    shard_size: int = 8,
    progress: bool = True,
    on_shard: OnShard | None = None,
) -> FaithfulnessResult:
    """Measure several methods side by side into ``out``. Run it again after a kill to continue.

    ``out`` receives ``part-00000.parquet`` and on during the work, and at its end
    ``faithfulness.json``, ``.csv``, ``.md`` and ``curves.png``.

    Args:
        model: The model.
        histories: Histories whose predictions are explained.
        methods: Names of the registry, or compared methods with options.
        out: The folder.
        options: What is measured. Default: `FaithfulnessOptions()`.
        shard_size: Histories of one shard: what a kill may lose. Default 8.
        progress: Whether to show a progress bar.
        on_shard: Called with the path of each shard that this process has written.

    Raises:
        ExplanationError: See `evaluate_faithfulness`; nothing is written then.
        OutputError: ``out`` cannot be written, or holds another comparison.
        ConfigError: matplotlib is not installed; all that was measured is kept.
    """
    options = options or FaithfulnessOptions()
    refuse_empty(histories)
    compared = methods_compared(methods, options.removals)
    plan = {
        "model": model_fingerprint(model),
        "histories": histories_fingerprint(histories),
        "users": len(histories),
        "methods": {method.label: dict(method.options) for method in compared},
        "options": {name: str(value) for name, value in asdict(options).items()},
        "shard_size": shard_size,
    }
    shards = Shards(Path(out), plan, len(histories), shard_size)

    def compute(rows: Sequence[int]) -> tuple[pa.Table, Failures]:
        part = [histories[row] for row in rows]
        return measure_batch(model, part, compared, options, first=rows[0]), {}

    with shards.locked():
        shards.fill(compute, name="faithfulness", on_shard=on_shard, progress=progress)
        tables = [pq.ParquetFile(path).read() for path in shards.paths]
        result = comparison_result(pa.concat_tables(tables), compared)
        if PartialState(cpu=on_cpu()).is_main_process:
            _write(shards.folder, result)
    return result


def _write(folder: Path, result: FaithfulnessResult) -> None:
    """The summary as JSON, CSV and Markdown, and the curves as a picture."""
    summary = {
        "schema": 1,
        "plan": json.loads((folder / "plan.json").read_text(encoding="utf-8")),
        "baselines": list(result.baselines),
        "summary": result.summary(),
        "misleading": result.misleading(),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(folder / "faithfulness.json", text)
    write_text(folder / "faithfulness.csv", to_csv(result))
    tables = [to_markdown(result, removal) for removal in result.removals]
    warnings = [f"- {line}" for line in misleading_lines(result)]
    notes = ["Not better than a baseline:", "", *warnings, ""] if warnings else []
    write_text(folder / "faithfulness.md", "\n".join([*tables, *notes]))
    savefig = plot_curves(result).savefig
    write_whole(folder / "curves.png", partial(savefig, dpi=150, format="png"))
