"""What the removal of each event changes on the list of recommendations, by evaluating it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from llm_influence.attribution.recommended import ROWS, seen_codes
from llm_influence.attribution.target import BoundTarget, Slate, bind
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import Influence
from llm_influence.influence.slate_change import SlateChange, largest
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History


def slate_changes(model: InfluenceModel, history: History, k: int = 10) -> list[SlateChange]:
    """The list of ``k`` recommendations without each event in turn.

    The model reads the history once without each event, as with the removal ``drop``. Items of the
    whole history stay excluded, and rules add what they add for the whole history: only the
    ranking by the model changes. `SlateChange` says what leaves the list and what enters it.

    Args:
        model: The model.
        history: At least one event; it is cut to the E events that fit the context.
        k: Length of the list. Default 10.

    Returns:
        One change for each of the E events, oldest first.

    Raises:
        ExplanationError: No event, ``k`` below 1, or no item outside the history.
        UnknownNameError: The model lacks an item or behaviour of the history.

    Example:
        >>> changes = slate_changes(model, log["196"])  # doctest: +SKIP
        >>> max(changes, key=lambda change: len(change.leaves)).enters  # doctest: +SKIP
        ('Alien (1979)', 'Fargo (1996)')
    """
    if not len(history):
        raise ExplanationError(
            "the history has no event",
            where=f"slate_changes of user {history.user_id!r}",
            expected="at least one event to remove",
            fix="leave the user out",
        )
    slate = bind(Slate(k), model, [history])
    return _changes(model, history, slate.codes[0], slate.changes)


def with_slate_changes(
    model: InfluenceModel,
    histories: Sequence[History],
    targets: Sequence[BoundTarget],
    records: Sequence[Sequence[Influence]],
) -> list[list[Influence]]:
    """The records of N histories, those of a slate with the largest change by one event."""

    def changed(row: int, target: BoundTarget, record: Influence) -> Influence:
        if target.kind != "slate":
            return record
        rules = None if target.changes is None else target.changes[row : row + 1]
        changes = _changes(model, histories[row], target.codes[row], rules)
        return replace(record, slate_change=largest(changes))

    return [
        [changed(row, *pair) for pair in zip(targets, of_history, strict=True)]
        for row, of_history in enumerate(records)
    ]


def _changes(
    model: InfluenceModel, whole: History, slate: Tensor, rules: Tensor | None
) -> list[SlateChange]:
    """The changes of a (K,) list, under the (1, I) numbers that rules add."""
    history, seen = model.encoder.trim(whole), seen_codes(model, [whole])
    listed = [code for code in slate.tolist() if code >= 0]
    kept = ~np.eye(len(history), dtype=bool)
    lists: list[list[int]] = []
    for start in range(0, len(kept), ROWS):
        shorter = [history.keep(mask) for mask in kept[start : start + ROWS]]
        with inference(model):
            scores = model.item_scores(model.read(shorter))
            if rules is not None:
                scores = scores.under(rules.expand(len(shorter), -1))
            best = scores.best(len(listed), seen=seen.expand(len(shorter), -1))
        lists += best.codes.cpu().tolist()
    return [_change(model, place, listed, new) for place, new in enumerate(lists)]


def _change(
    model: InfluenceModel, event: int, listed: Sequence[int], new: Sequence[int]
) -> SlateChange:
    def names(codes: Sequence[int], others: Sequence[int]) -> tuple[str, ...]:
        items = model.catalogue
        return tuple(
            items.titles[code] or items.ids[code].as_py() for code in codes if code not in others
        )

    staying = [code for code in listed if code in new]
    return SlateChange(
        event=event,
        size=len(listed),
        moved=sum(listed.index(code) != new.index(code) for code in staying),
        leaves=names(listed, new),
        enters=names(new, listed),
    )
