"""Weights by inverse propensity: which they are, what they do to the loss, what they undo."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from llm_influence.config.model import ItemHeadConfig
from llm_influence.config.training import PropensityConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.errors import DataError, SchemaError
from llm_influence.training.augmentation import Negatives
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import label_weights
from tests import tiny
from tests.training.runs import step_in_parts


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log()).train


def log_of(counts, **columns):
    """A log in which item n occurs ``counts[n]`` times."""
    items = np.repeat(np.arange(len(counts)), counts)
    ids = [f"i{n}" for n in range(len(counts))]
    events = pa.table(
        {
            "user_id": [f"u{n % 3}" for n in range(len(items))],
            "item_id": [ids[n] for n in items],
            "timestamp": np.arange(len(items)),
        }
    )
    return BehaviorLog.read(events, items=pa.table({"item_id": ids, "title": ids, **columns}))


def weights_of(log, **options):
    return label_weights(PropensityConfig(**options), log.catalogue, log)


def test_popularity_is_a_power_of_the_counts_clipped_with_a_mean_of_one_over_labels():
    counts = np.array([16, 4, 1, 0])
    log = log_of(counts)
    found = weights_of(log, source="popularity", clip=0.3)
    wanted = 1 / np.array([1, 0.5, 0.3, 0.3])  # square roots of 1, 1/4, 1/16 and 0
    np.testing.assert_allclose(found, wanted / (wanted @ counts / counts.sum()), rtol=1e-6)
    assert found @ counts / counts.sum() == pytest.approx(1)
    whole = weights_of(log, source="popularity", power=1, clip=0.01)
    np.testing.assert_allclose(whole[:3] / whole[0], [1, 4, 16], rtol=1e-6)


def test_exposure_is_a_column_and_unseen_items_may_have_none():
    log = log_of([3, 2, 1, 0], shown=[50, 10, 5, None])
    found = weights_of(log, source="exposure", column="shown", clip=0.2)
    np.testing.assert_allclose(found / found[0], [1, 5, 5, 5], rtol=1e-6)


def test_without_a_source_nothing_is_weighted(train):
    assert weights_of(train) is None


def test_bad_exposures_are_refused():
    log = log_of([3, 2], shown=[1.0, 0.0], words=["a", "b"])
    with pytest.raises(DataError, match="'i1' occurs in training and its 'shown' is 0"):
        weights_of(log, source="exposure", column="shown")
    with pytest.raises(SchemaError, match="did you mean 'shown'"):
        weights_of(log, source="exposure", column="showm")
    with pytest.raises(SchemaError, match="type string"):
        weights_of(log, source="exposure", column="words")
    for options in ({"source": "exposure"}, {"source": "popularity", "column": "shown"}):
        with pytest.raises(ValidationError, match="column"):
            tiny.run_config(train={"propensity": options})


@pytest.fixture(scope="module")
def with_feedback():
    return tiny.tiny_model(feedback_head={"weight": 0.5, "positive_from": 3.0})


@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_every_label_counts_by_its_item_in_every_head(train, with_feedback, loss, monkeypatch):
    """The loss of a step is the weighted sum of the losses of its labels alone."""
    model = with_feedback
    head = ItemHeadConfig(loss=loss)
    monkeypatch.setattr(model, "config", model.config.model_copy(update={"item_head": head}))
    negatives = None if loss == "full" else Negatives(np.ones(30), 9)
    weights = np.linspace(0.2, 3, 30).astype(np.float32)
    windows = list(WindowDataset(train, model.encoder))[:3]
    collator = WindowCollator(train, model.encoder, feedback=model.config.feedback_head)
    inputs = collator(windows)
    known = (inputs["labels"] != IGNORE).nonzero()
    total = 0.0
    plain = NextEventObjective(model, negatives=negatives).eval()
    weighted = NextEventObjective(model, negatives=negatives, propensity=weights).eval()
    with torch.no_grad():
        for row, place in known.tolist():
            one = torch.full_like(inputs["labels"], IGNORE)
            one[row, place] = inputs["labels"][row, place]
            alone = plain(**{**inputs, "labels": one}, num_items_in_batch=1)["loss"]
            total += weights[int(one[row, place])] * float(alone)
        found = float(weighted(**inputs, num_items_in_batch=1)["loss"])
        assert found == pytest.approx(total, rel=1e-4)
        even = NextEventObjective(
            model, negatives=negatives, propensity=np.ones(30, np.float32)
        ).eval()
        same = float(even(**inputs)["loss"])
        assert same == pytest.approx(float(plain(**inputs)["loss"]), rel=1e-6)


def test_a_weighted_step_does_not_depend_on_how_it_is_cut(train, with_feedback):
    model = with_feedback
    weights = np.linspace(0.2, 3, 30).astype(np.float32)
    objective = NextEventObjective(model, propensity=weights).eval()
    collator = WindowCollator(train, model.encoder, feedback=model.config.feedback_head)
    windows = list(WindowDataset(train, model.encoder))[:9]
    found = [step_in_parts(objective, collator, windows, cuts) for cuts in ([9], [1, 6, 2])]
    objective.zero_grad()
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_weighted_labels_of_a_confounded_log_have_the_shares_of_the_law():
    """Items wanted alike and shown unequally: the weighted counts are even again."""
    random, shown = np.random.default_rng(0), np.array([1.0, 0.5, 0.2, 0.1])
    counts = random.multinomial(20_000, shown / shown.sum())
    log = log_of(counts, shown=shown)
    weighted = weights_of(log, source="exposure", column="shown") * counts
    np.testing.assert_allclose(weighted / weighted.sum(), 0.25, atol=0.02)
