"""Which events of a log are asked for feedback, and what the answer was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_influence.config import FeedbackHeadConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, UnknownNameError, choices


def feedback_labels(log: BehaviorLog, config: FeedbackHeadConfig) -> npt.NDArray[np.float32]:
    """(N,) label of every event of the log, NaN where none is asked for.

    Args:
        log: The log.
        config: Names the column and the behaviours that are asked.

    Raises:
        ConfigError: The log has no such column.
        UnknownNameError: No event of the log can have one of the behaviours.
    """
    labels = log.values if config.label == "value" else log.labels
    if labels is None:
        raise ConfigError(
            "the log has no column 'label'",
            where="model.feedback_head.label",
            expected="a log whose events have labels",
            fix="map the column with data.columns, or predict the values with label: value",
        )
    if not config.behaviors:
        return labels
    known = log.vocabulary.behaviors
    for name in config.behaviors:
        if name not in known:
            raise UnknownNameError(
                f"unknown behaviour {name!r}",
                where="model.feedback_head.behaviors",
                expected=choices(known, name),
                fix="name behaviours of the log",
            )
    asked = np.isin(log.behaviors, [known.index(name) for name in config.behaviors])
    return np.where(asked, labels, np.float32("nan"))
