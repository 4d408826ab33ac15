"""evaluate_faithfulness: every metric of every method for every user."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from tqdm import tqdm

from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.contenders import Contender, line_up
from llm_influence.faithfulness.measure import measure_batch
from llm_influence.faithfulness.options import Options
from llm_influence.faithfulness.result import FaithfulnessResult
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History


def evaluate_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | Contender],
    options: Options | None = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> FaithfulnessResult:
    """Measure methods beside each other and beside every reference of the registry.

    All use one removal and one value function, so a set of events that several methods or metrics
    ask for is computed once. Results do not depend on ``batch_size`` beyond rounding.

    Args:
        model: The model; its mode is put back afterwards.
        histories: Whose predictions are explained; intervals are over their users.
        methods: Names of the registry, or `contender` with options.
        options: What is measured; default: `Options()`.
        batch_size: Histories at a time; affects speed and memory alone.
        progress: Show a bar.

    Raises:
        ExplanationError: An unknown method, metric, removal or target, a method that cannot use
            the removal, or a history without events.
    """
    options = options or Options()
    refuse_empty(histories)
    contenders = line_up(methods, options.removals)
    starts = range(0, len(histories), batch_size)
    tables = [
        measure_batch(
            model, histories[start : start + batch_size], contenders, options, first=start
        )
        for start in tqdm(starts, unit="batch", desc="faithfulness", disable=not progress)
    ]
    return FaithfulnessResult.of(pa.concat_tables(tables), contenders)


def refuse_empty(histories: Sequence[History]) -> None:
    """Raise an `ExplanationError` where there is nothing to explain."""
    empty = [history.user_id for history in histories if not len(history)]
    if empty or not len(histories):
        raise ExplanationError(
            f"user {empty[0]!r} has no event" if empty else "there is no history",
            where="faithfulness",
            expected="histories with at least one event each",
            fix="leave such users out",
        )
