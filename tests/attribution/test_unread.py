"""A field is unread if neither the template nor the memory holds it."""

import pytest

from llm_influence import InfluenceModel
from llm_influence.attribution.unread import unread_fields
from tests import tiny


@pytest.mark.parametrize(
    ("template", "memory", "target", "unread"),
    [
        ("full", False, "item", ()),
        ("item", False, "item", ("behavior", "value", "time")),
        ("item_value", False, "behavior", ("behavior", "time")),
        ("item", True, "slate", ()),
        ("item", True, "behavior", ("behavior", "value", "time")),
        ("item", False, "feedback_value", ()),
    ],
)
def test_unread_fields(template, memory, target, unread):
    config = tiny.run_config(
        rendering={"template": template}, model={"item_head": {"memory": {"enabled": memory}}}
    )
    assert unread_fields(InfluenceModel.build(config, tiny.small_log()), target) == unread
