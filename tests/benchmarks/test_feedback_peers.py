"""The peers of benchmarks/prediction/feedback.py see no future, and are measured as we are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.peers.feedback_task import Examples, Task
from benchmarks.peers.lstm_peer import ClickNetwork, Events
from benchmarks.peers.metrics import auc
from benchmarks.peers.tree_features import PRIOR, table
from llm_influence.evaluation.metrics import feedback_metrics

LENGTHS = (9, 4, 12, 7, 8)
EVENT = 15
"""One in the middle of the third user's history."""


@pytest.fixture
def task():
    random = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(LENGTHS))
    count, users = offsets[-1], np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    positions = np.arange(count) - offsets[users]
    trained = positions < np.array(LENGTHS)[users] - 2
    events = np.flatnonzero(~trained)
    ratings = random.integers(1, 6, count).astype(float)
    ratings[[EVENT, EVENT + 1]] = 5, 2
    asked = Examples(users[events], positions[events], events, ratings[events] >= 4)
    return Task(
        offsets=offsets,
        items=random.integers(0, 6, count),
        ratings=ratings,
        times=1_000_000_000 + np.arange(count) * 977 % 20_000 + positions * 20_000,
        trained=trained,
        genres=random.integers(0, 2, (6, 3)).astype(float),
        years=np.array([1990.0, 1991, np.nan, 1980, 1995, 1970]),
        people=random.integers(0, 5, (len(LENGTHS), 3)).astype(float),
        parts={"validation": asked, "test": asked},
    )


@pytest.mark.parametrize("values", [4, 1000])
def test_the_two_aucs_agree_where_scores_are_equal(values):
    random = np.random.default_rng(1)
    labels, scores = random.random(80) < 0.4, random.integers(0, values, 80) / 10
    expected = feedback_metrics(labels, scores, np.zeros(80))["auc"]
    assert auc(labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize("statistics", ["past", "others"])
def test_features_of_a_question_do_not_know_its_answer_or_what_its_user_does_later(
    task, statistics
):
    ratings = task.ratings.copy()
    ratings[[EVENT, EVENT + 1]] = ratings[[EVENT + 1, EVENT]]  # the mean of training stays
    names, before = table(task, statistics)
    after = table(replace(task, ratings=ratings), statistics)[1]
    np.testing.assert_allclose(before[EVENT], after[EVENT], atol=1e-9)
    assert (before[EVENT + 1] != after[EVENT + 1]).any(), "the next one knows the answer"
    assert len(names) == before.shape[1]


def test_of_items_the_past_knows_training_before_the_moment_alone(task):
    names, values = table(task, "past")
    for event in range(len(task.items)):
        before = task.trained & (task.times < task.times[event])
        same = before & (task.items == task.items[event])
        mean = task.ratings[task.trained].mean()
        expected = (task.ratings[same].sum() + PRIOR * mean) / (same.sum() + PRIOR)
        assert values[event, names.index("item_rating")] == pytest.approx(expected)


@pytest.mark.parametrize("statistics", ["past", "others"])
def test_nothing_that_is_asked_of_others_reaches_a_feature(task, statistics):
    ratings = task.ratings.copy()
    others = ~task.trained & (task.users != task.users[EVENT])
    ratings[others] = 6 - ratings[others]
    mine = task.users == task.users[EVENT]
    before = table(task, statistics)[1][mine]
    after = table(replace(task, ratings=ratings), statistics)[1][mine]
    np.testing.assert_allclose(before, after, atol=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_click_model_answers_before_it_has_read_the_answer(task, cell):
    torch.manual_seed(0)
    settings = {"width": 8, "cell": cell, "dropout": 0.5, "genres": True, "gaps": True}
    network = ClickNetwork(task, settings).eval()
    ratings, asked = task.ratings.copy(), task.parts["validation"]
    ratings[asked.events[::2]] = 6 - ratings[asked.events[::2]]  # the first of each user's two
    before = Events(task).scores(network, asked, batch=2)
    after = Events(replace(task, ratings=ratings)).scores(network, asked, batch=2)
    np.testing.assert_allclose(before[::2], after[::2], rtol=1e-6)
    changed = task.ratings[asked.events[::2]] != ratings[asked.events[::2]]
    assert (before[1::2] != after[1::2])[changed].all(), "the second question knows the first"
    alone = Events(task).scores(network, asked, batch=1)
    np.testing.assert_allclose(before, alone, rtol=1e-5)
