"""The choice of the metric that chooses the epoch."""

import numpy as np
import pytest

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.errors import ConfigError
from llm_influence.evaluation.evaluate import chosen_metric
from llm_influence.training.finetune import finetune
from tests import tiny
from tests.training.runs import NO_ITEMS, config_in, feedback_head


@pytest.mark.parametrize(
    ("model", "choice", "expected"),
    [
        ({}, "auto", ("ndcg@10", True)),
        (NO_ITEMS, "auto", ("behavior_accuracy", True)),
        ({**NO_ITEMS, "feedback_head": feedback_head()}, "auto", ("feedback_auc", True)),
        (
            {**NO_ITEMS, "feedback_head": feedback_head("regression")},
            "auto",
            ("feedback_rmse", False),
        ),
        ({"feedback_head": feedback_head("ordinal")}, "mae", ("feedback_mae", False)),
        ({}, "hr", ("hr@10", True)),
        ({}, "macro_f1", ("behavior_macro_f1", True)),
    ],
)
def test_the_epoch_is_chosen_by_the_first_trained_head_or_by_any_metric(model, choice, expected):
    config = tiny.run_config(model=model, evaluation={"choose_by": choice})
    assert chosen_metric(config) == expected


@pytest.mark.parametrize(
    ("model", "choice", "said"),
    [
        ({}, "auc", r"a trained head.*give model\.feedback_head\.weight"),
        ({"feedback_head": feedback_head()}, "rmse", "kind 'binary'"),
        ({"feedback_head": feedback_head("regression")}, "auc", "mae, rmse"),
    ],
)
def test_a_metric_that_no_trained_head_has_is_refused_before_anything_is_read(
    tmp_path, model, choice, said
):
    config = tiny.run_config(model=model, evaluation={"choose_by": choice})
    with pytest.raises(ConfigError, match=said):
        finetune(config.model_copy(update={"output": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_a_validation_with_one_kind_of_label_cannot_choose(tmp_path):
    table = tiny.events_table()
    early = np.array(table["timestamp"]) < 1_200_000
    labels = np.where(early, np.arange(len(early)) % 2, 1.0)  # late events are all liked
    only = {
        "item_head": {"weight": 0.0},
        "feedback_head": feedback_head(label="label", positive_from=1.0),
    }
    config = config_in(tmp_path, table.append_column("label", [labels.tolist()]), model=only)
    with pytest.raises(ConfigError, match="all validation labels are on one side of 1"):
        finetune(config)


def test_no_head_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one head"):
        tiny.run_config(model={"item_head": {"weight": 0}, "behavior_head": {"weight": 0}})
    assert FeedbackHeadConfig().weight == 0
