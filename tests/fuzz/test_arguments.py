"""Arguments of the wrong kind: one of the library's own errors, never a Python or Arrow error."""

import numpy as np
import pandas as pd
import pytest

from llm_influence import Contrast, Explainer, Slate
from llm_influence.attribution.target import Item
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import InfluenceError
from llm_influence.types import Event, History
from tests import tiny

WRONG = [None, [], {}, 4, 1.5, float("nan"), -1, True, b"i1", "nothing", [None], np.array([1])]


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def history():
    return tiny.small_log()["u1"]


DOORS = {
    "history": lambda model, history, wrong: model.recommend(wrong),
    "k": lambda model, history, wrong: model.recommend(history, wrong),
    "candidates": lambda model, history, wrong: model.recommend(history, candidates=[wrong]),
    "items": lambda model, history, wrong: model.add_items(wrong),
    "explained": lambda model, history, wrong: Explainer(model, "recency").explain([wrong]),
    "target": lambda model, history, wrong: Explainer(model, "recency").explain(history, wrong),
    "item": lambda model, history, wrong: Explainer(model, "recency").explain(history, Item(wrong)),
    "contrast": lambda model, history, wrong: Explainer(model, "recency").explain(
        history, Contrast("i1", wrong)
    ),
    "slate": lambda model, history, wrong: Explainer(model, "leave_one_out").explain(
        history, Slate(wrong)
    ),
    "event": lambda model, history, wrong: History.from_events("u", [wrong]),
    "event item": lambda model, history, wrong: model.recommend(
        History.from_events("u", [Event(wrong, "click", 1)])
    ),
    "catalogue": lambda model, history, wrong: Catalogue.from_table(wrong),
    "log": lambda model, history, wrong: BehaviorLog.read(wrong),
}
ALLOWED = {"k": (4,), "slate": (4,)}
"""Values that are right."""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_argument_is_an_error_of_the_library(model, history, door, wrong):
    if any(wrong is right for right in ALLOWED.get(door, ())):
        return
    with pytest.raises(InfluenceError) as caught:
        DOORS[door](model, history, wrong)
    assert len(str(caught.value)) < 2000


FRAME = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: BehaviorLog.read(FRAME, columns=["user_id"]), "columns is list.*a mapping"),
        (lambda: BehaviorLog.read(FRAME, columns={"user_id": 0}), "column name is int 0"),
        (lambda: BehaviorLog.read(pd.concat([FRAME, FRAME], axis=1)), "(?i)duplicate|twice"),
        (lambda: BehaviorLog.read(FRAME.assign(user_id=[2**70])), "too large|user_id"),
        (
            lambda: History.from_events("u", [Event("a", "b", pd.Timestamp("2024-01-01"))]),
            "timestamp of an event is Timestamp.*whole seconds",
        ),
        (lambda: Catalogue.from_table(FRAME), "an Arrow table"),
    ],
)
def test_the_message_names_the_argument(read, message):
    with pytest.raises(InfluenceError, match=message):
        read()
