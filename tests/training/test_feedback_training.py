"""The feedback loss against one written by hand; no answer is read before it is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError
from llm_influence.evaluation.evaluate import (
    by_head,
    chosen_metric,
    compare_heads,
    head_metrics,
    predict_rows,
)
from llm_influence.rendering.batch import collate
from llm_influence.rendering.time_words import query_codes
from llm_influence.run import Run
from llm_influence.training.augmentation import EventDropout, events_before
from llm_influence.training.batches import IGNORE, Window, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.objective import NextEventObjective
from tests import tiny
from tests.training.runs import NO_DROPOUT, config_in, largest_difference, step_in_parts, weights

KINDS = ("binary", "ordinal", "regression")
SEEN, WINDOW = 2, Window(user=7, start=0, stop=5)


def head(kind="binary", **options):
    return {"weight": 1.0, "kind": kind, "positive_from": 4.0, "hidden": 8, **options}


@pytest.fixture(scope="module")
def train():
    return split_log(tiny.small_log()).train


@pytest.fixture(scope="module", params=KINDS)
def answering(request):
    alone = {"item_head": {"weight": 0.0}, "behavior_head": {"weight": 0.0}, "when": True}
    return tiny.tiny_model("bert", "token", feedback_head=head(request.param), **alone)


def collator(model, log, dropout=None):
    return WindowCollator(log, model.encoder, dropout, feedback=model.config.feedback, when=True)


def test_the_loss_is_that_of_every_answer_after_the_prefix_before_it(answering, train):
    """Each prefix is read alone, at the moment of its event: no value of it can have helped."""
    windows = list(WindowDataset(train, answering.encoder))[:5]
    inputs = collator(answering, train)(windows)
    link, total, events = answering.feedback_head.link, 0.0, 0
    with torch.no_grad():
        for window in windows:
            history = train.at(window.user).keep(slice(window.start, window.stop + 1))
            for place, value in enumerate(history.values):
                events += 1
                if np.isnan(value):
                    continue
                moment = int(history.timestamps[place])
                prefix = replace(history.keep(slice(place)), query_time=moment)
                states = answering.query(collate(answering.encoder.encode([prefix])))
                codes = (
                    torch.tensor([int(column[place])])
                    for column in (history.items, history.behaviors)
                )
                scores = answering.feedback_scores(states, *codes)
                total += float(link.loss(scores, torch.tensor([value])))
        loss = float(NextEventObjective(answering).eval()(**inputs)["loss"])
    assert (inputs["labels"] != IGNORE).sum() == events
    assert loss == pytest.approx(total / events / answering.feedback_head.scale.share, rel=1e-4)


@pytest.mark.parametrize("dropout", [None, EventDropout(0.9, share=1.0)])
def test_an_answer_and_all_that_follows_moves_nothing_that_predicts_it(train, dropout):
    model = tiny.tiny_model("bert", "token", feedback_head=head(), when=True)
    first, end = int(train.offsets[7]) + SEEN, int(train.offsets[8])
    values = train.values.copy()
    values[first:end] = np.where(np.isnan(values[first:end]), 5, 6 - values[first:end])
    later = replace(train, values=values)  # the answer of event SEEN and of all behind it

    def scores(log):
        heard = []
        hook = model.feedback_head.register_forward_hook(lambda *call: heard.append(call[-1]))
        inputs = collator(model, log, dropout)([WINDOW])
        inputs["feedback_labels"] = torch.full_like(inputs["feedback_labels"], 4.0)  # ask them all
        with torch.no_grad():
            NextEventObjective(model).eval()(**inputs)
        hook.remove()
        return heard[0]

    before, after = scores(train), scores(later)
    assert len(before) == WINDOW.stop + 1
    torch.testing.assert_close(after[: SEEN + 1], before[: SEEN + 1], rtol=0, atol=0)
    if dropout is None:
        assert ((after - before)[SEEN + 1 :].abs() > 1e-6).all()


@pytest.mark.parametrize("dropout", [EventDropout(), EventDropout(0.9, share=1.0)])
def test_the_gap_to_a_label_is_measured_from_the_last_event_that_is_seen(train, dropout):
    encoder = tiny.tiny_model().encoder
    windows = list(WindowDataset(train, encoder))
    inputs = WindowCollator(train, encoder, dropout, when=True)(windows)
    assert "label_when" not in WindowCollator(train, encoder, dropout)(windows)
    lost = 0
    for row, window in enumerate(windows):
        times = train.at(window.user).timestamps[window.start : window.stop + 1]
        kept = dropout.kept(len(times) - 1, epoch=0, user=window.user, start=window.start)
        lost += int((~kept).sum())
        for place, count in enumerate(events_before(kept)):
            found = int(inputs["label_when"][row, place])
            if not count:
                assert found == 0
                continue
            last = times[:-1][kept][count - 1]
            expected = query_codes(np.array([last]), times[place : place + 1], np.ones(1, bool))
            assert found == expected[0] > 0
    assert bool(lost) == bool(dropout.rate)


def test_a_step_does_not_depend_on_how_it_is_cut(answering, train):
    """One part holds no answer at all; its head must still be part of the graph."""
    windows = list(WindowDataset(train, answering.encoder))[:6]
    objective = NextEventObjective(answering).eval()
    render = collator(answering, train)
    found = [step_in_parts(objective, render, windows, cuts) for cuts in ([6], [1, 5])]
    objective.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)
    silent = collator(answering, train)(windows[:2])
    silent["feedback_labels"].fill_(torch.nan)
    objective(**silent)["loss"].backward()
    assert all(p.grad is not None for p in answering.feedback_head.parameters())
    objective.zero_grad()


def test_a_head_of_weight_zero_is_not_trained(answering, train):
    windows = list(WindowDataset(train, answering.encoder))[:3]
    objective = NextEventObjective(answering).eval()
    objective(**collator(answering, train)(windows))["loss"].backward()
    for idle in (answering.item_head, answering.behavior_head):
        assert not any(p.requires_grad or p.grad is not None for p in idle.parameters())
    assert answering.feedback_head.score.weight.grad.abs().max() > 0
    objective.zero_grad()


def test_with_defaults_the_loss_is_what_it_was(train):
    """Neither new head nor "when" in a model that does not ask for them."""
    model = tiny.tiny_model()
    assert model.feedback_head is None
    assert model.when is None
    windows = list(WindowDataset(train, model.encoder))[:4]
    with torch.no_grad():
        plain = NextEventObjective(model).eval()(**WindowCollator(train, model.encoder)(windows))
        told = NextEventObjective(model).eval()(
            **WindowCollator(train, model.encoder, when=True)(windows)
        )
    assert float(plain["loss"]) == float(told["loss"])


# --- whole runs --------------------------------------------------------------------------------

NO_ITEMS = {"item_head": {"weight": 0.0}}


@pytest.fixture(scope="module")
def liking(tmp_path_factory):
    """A run on a log in which even items are liked and odd ones are not, two examples a user."""
    table = tiny.events_table(users=40)
    likes = [float(int(item[1:]) % 2 == 0) for item in table["item_id"].to_pylist()]
    table = table.append_column("label", [likes])
    config = config_in(
        tmp_path_factory.mktemp("liking"),
        table,
        data={"split": {"held_out": 2, "min_events": 5}},
        model={"feedback_head": head(label="label", positive_from=1.0), "when": True, **NO_DROPOUT},
        train={"epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "item_learning_rate": 3e-2},
    )
    return config, finetune(config)


def test_a_run_learns_what_is_liked_and_measures_every_head(liking):
    config, result = liking
    groups = by_head(result.test)
    assert groups.keys() == {"items", "behaviors", "feedback"}
    assert groups["feedback"]["auc"] > 0.8
    assert {"coverage@10", "popularity@10", "target_popularity"} < groups["items"].keys()
    run = Run.open(result.folder)
    drawn = [history.user_id for history in run.test_histories(len(run.split.log))]
    assert len(drawn) == len(set(drawn)) == len(run.split.test) / 2
    found = predict_rows(run.model, run.split.test, config.evaluation, top=10)
    assert head_metrics(run.model, found, 10) == pytest.approx(result.test, abs=1e-5)
    records = compare_heads(run.model, run.split, config.evaluation)
    assert [r["system"] for r in records["feedback"]] == [
        "llm_influence",
        "item mean",
        "mean of training",
    ]
    assert records["feedback"][0]["auc"] == pytest.approx(groups["feedback"]["auc"])
    assert records["feedback"][2]["auc"] == 0.5
    assert records["behaviors"][0]["accuracy"] == pytest.approx(groups["behaviors"]["accuracy"])


def test_a_checkpoint_brings_every_head_back(liking):
    _, result = liking
    again = finetune(liking[0], resume=True)
    assert again.test == pytest.approx(result.test)
    assert largest_difference(weights(again.folder), weights(result.folder)) == 0
    assert {"when.weight", "feedback_head.score.weight"} < weights(result.folder).keys()


@pytest.mark.parametrize(
    ("model", "choice", "expected"),
    [
        ({}, "auto", ("ndcg@10", True)),
        (NO_ITEMS, "auto", ("behavior_accuracy", True)),
        ({**NO_ITEMS, "feedback_head": head()}, "auto", ("feedback_auc", True)),
        ({**NO_ITEMS, "feedback_head": head("regression")}, "auto", ("feedback_rmse", False)),
        ({"feedback_head": head("ordinal")}, "mae", ("feedback_mae", False)),
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
        ({}, "auc", r"feedback_head\.weight is 0"),
        ({"feedback_head": head()}, "rmse", "kind 'binary'"),
        ({"feedback_head": head("regression")}, "auc", "mae, rmse"),
    ],
)
def test_a_metric_that_no_trained_head_has_is_refused_before_anything_is_read(
    tmp_path, model, choice, said
):
    config = tiny.run_config(model=model, evaluation={"choose_by": choice})
    with pytest.raises(ConfigError, match=said):
        finetune(config.model_copy(update={"output": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_a_validation_with_one_sort_of_answers_cannot_choose(tmp_path):
    table = tiny.events_table()
    early = np.array(table["timestamp"]) < 1_200_000
    labels = np.where(early, np.arange(len(early)) % 2, 1.0)  # late events are all liked
    only = {"item_head": {"weight": 0.0}, "feedback_head": head(label="label", positive_from=1.0)}
    config = config_in(tmp_path, table.append_column("label", [labels.tolist()]), model=only)
    with pytest.raises(ConfigError, match="all labels of validation are on one side of 1"):
        finetune(config)


def test_no_head_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one head"):
        tiny.run_config(model={"item_head": {"weight": 0}, "behavior_head": {"weight": 0}})
    assert FeedbackHeadConfig().weight == 0
