"""Fields of events that a model does not read, so that no sentence gives them as a reason."""

from __future__ import annotations

from llm_influence.modeling.model import InfluenceModel

_READ_BY = {
    "behavior": {"behavior"},
    "value": {"value"},
    "time": {"gap", "hour", "weekday"},
}
"""Fields of an event, and the fields of templates that write them."""
_OF_ITEMS = ("item", "contrast", "slate", "drawn")


def unread_fields(model: InfluenceModel, target: str) -> tuple[str, ...]:
    """Fields among ``behavior``, ``value`` and ``time`` that cannot move a kind of target.

    The memory reads all of them, for the logits of items. Feedback may read counts by behaviour.
    """
    if target.startswith("feedback"):
        return ()
    if target in _OF_ITEMS and model.item_head.memory is not None:
        return ()
    written = model.encoder.template.fields
    return tuple(name for name, fields in _READ_BY.items() if not fields & written)
