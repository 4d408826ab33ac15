"""Losses of the feedback head in closed form, and what a model with one promises."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import (
    ConfigError,
    DataError,
    ExplanationError,
    ModelFolderError,
    UnknownNameError,
)
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.heads import BinaryLink, FeedbackScale, OrdinalLink, RegressionLink
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from tests import tiny

KINDS = ("binary", "ordinal", "regression")
SCORES = torch.tensor([-8.0, -0.7, 0.0, 0.4, 9.0])


def head(kind="binary", **options):
    return {"weight": 1.0, "kind": kind, "positive_from": 4.0, "hidden": 8, **options}


def config(kind, **options):
    return FeedbackHeadConfig(**head(kind, **options))


@pytest.fixture(scope="module")
def scale():
    return lambda kind: FeedbackScale.fit(split_log(tiny.small_log()).train, config(kind))


@pytest.fixture(scope="module", params=KINDS)
def answering(request):
    """A model with a feedback head that reads "when"."""
    return tiny.tiny_model("bert", "token", feedback_head=head(request.param), when=True)


def asked(log, *, later=5000):
    """Histories of three users and the moments of their examples."""
    return [replace(log.at(n), query_time=int(log.at(n).timestamps[-1]) + later) for n in (7, 0, 2)]


def feedback_of(model, histories):
    batch = collate(model.encoder.encode(histories))
    with torch.no_grad():
        query = model.query(batch)
        return model.feedback(query, torch.tensor([3, 4, 3]), torch.tensor([0, 1, 2]))


# --- links -----------------------------------------------------------------------------------


def test_the_binary_loss_is_the_cross_entropy_of_a_label_from_positive_from_on(scale):
    link = BinaryLink(config("binary"), scale("binary"))
    labels, ones = torch.tensor([3.9, 4.0, 1.0, 5.0, 5.0]), [0, 1, 0, 1, 1]
    chances = torch.sigmoid(link.explained(SCORES)).detach().double().numpy()
    expected = [log_loss([y], [p], labels=[0, 1]) for y, p in zip(ones, chances, strict=True)]
    np.testing.assert_allclose(link.loss(SCORES, labels).detach(), expected, atol=2e-6)
    start = torch.sigmoid(link.explained(torch.zeros(1))).detach()
    assert float(start) == pytest.approx(scale("binary").mean, abs=1e-6)  # training's base rate


def test_ordinal_probabilities_add_up_and_are_differences_of_cumulative_ones(scale):
    link = OrdinalLink(config("ordinal"), scale("ordinal"))
    assert link.levels.tolist() == [1, 2, 3, 4, 5]
    thresholds = link.thresholds().detach().double()
    assert (thresholds.diff() > 0).all()
    chances = torch.stack([torch.exp(-link.loss(SCORES, torch.full((5,), v))) for v in link.levels])
    above = torch.sigmoid(SCORES.double()[:, None] - thresholds)  # label >= 2, 3, 4, 5
    edges = torch.cat([torch.ones(5, 1), above, torch.zeros(5, 1)], dim=1)
    torch.testing.assert_close(chances.T.double(), -edges.diff(dim=1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(link.explained(SCORES), SCORES - thresholds[2].float())  # >= 4
    expected = (chances.T @ link.levels).detach()
    torch.testing.assert_close(link.expected(SCORES).detach(), expected, rtol=1e-4, atol=1e-5)
    start = torch.stack([torch.exp(-link.loss(torch.zeros(1), v[None]))[0] for v in link.levels])
    assert start.tolist() == pytest.approx(scale("ordinal").shares, abs=1e-5)


def test_gradients_of_the_ordinal_loss_are_right_at_both_ends(scale):
    """Where a bound is infinite its gradient must be zero, not nan."""
    link = OrdinalLink(config("ordinal"), scale("ordinal")).double()
    scores = torch.tensor([-3.0, 0.2, 60.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 3.0, 5.0])

    def loss(scores, first, steps):
        values = {"first": first, "steps": steps}
        return torch.func.functional_call(_Loss(link), _named(values), (scores, labels))

    assert torch.autograd.gradcheck(loss, (scores, link.first, link.steps))


class _Loss(torch.nn.Module):
    def __init__(self, link):
        super().__init__()
        self.link = link

    def forward(self, scores, labels):
        return self.link.loss(scores, labels)


def _named(values):
    return {f"link.{name}": value for name, value in values.items()}


def test_the_regression_is_of_standardised_labels_and_explained_in_their_units(scale):
    known = scale("regression")
    link = RegressionLink(config("regression"), known)
    labels = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    standard = (labels - known.mean) / known.deviation
    torch.testing.assert_close(
        link.loss(SCORES, labels), F.mse_loss(SCORES, standard, reduction="none")
    )
    torch.testing.assert_close(link.explained(standard), labels)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"positive_from": 9.0}, ConfigError, "all .* training labels are below 9"),
        ({"positive_from": 0.0}, ConfigError, "all .* training labels are at least 0"),
        ({"kind": "ordinal", "positive_from": 1.0}, ConfigError, "above the lowest label 1"),
        ({"label": "label"}, ConfigError, "no column 'label'"),
        ({"behaviors": ["clik"]}, UnknownNameError, "'clik'"),
    ],
)
def test_labels_that_say_nothing_are_refused(log, options, error, said):
    with pytest.raises(error, match=said):
        FeedbackScale.fit(log, FeedbackHeadConfig(**{**head(), **options}))


def test_a_scale_knows_who_is_asked(log):
    every = FeedbackScale.fit(log, config("binary"))
    assert every.share == pytest.approx(float((~np.isnan(log.values)).mean()))
    clicks = FeedbackScale.fit(log, config("binary", behaviors=["click"]))
    assert clicks.behaviors == ("click",)
    code = log.code_names.behaviors.index("click")
    own = log.values[(log.behaviors == code) & ~np.isnan(log.values)]
    assert clicks.mean == pytest.approx(float((own >= 4).mean()))
    labels = np.where(np.arange(log.num_events) % 2, 1.0, 0.0)
    labelled = replace(log, labels=labels.astype(np.float32))
    found = FeedbackScale.fit(labelled, config("binary", label="label", positive_from=1.0))
    assert found.mean == pytest.approx(labels.mean())


# --- the model -------------------------------------------------------------------------------


def test_feedback_does_not_depend_on_the_batch_or_its_padding(answering, log):
    together = feedback_of(answering, asked(log))
    for row, history in enumerate(asked(log)):
        alone = feedback_of(answering, [history] * 3)[row]
        assert float(together[row]) == pytest.approx(float(alone), abs=1e-5)
    assert together.std() > 1e-3


def test_feedback_depends_on_the_candidate_the_behaviour_and_the_moment(answering, log):
    histories = [asked(log)[0]] * 3
    item, behavior, again = feedback_of(answering, histories)
    assert abs(item - behavior) > 1e-4
    assert abs(item - again) > 1e-4
    later = feedback_of(answering, [replace(h, query_time=h.query_time + 10**7) for h in histories])
    assert abs(later[0] - item) > 1e-4


def test_predictions_after_predict_can_be_asked_for_feedback(answering, log):
    """Its tensors were made in inference mode, and the question comes outside of it."""
    histories = asked(log)
    ((_, prediction),) = answering.predict(histories)
    found = prediction.feedback(torch.tensor([3, 4, 3]), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, feedback_of(answering, histories), rtol=1e-4, atol=1e-5)


def test_a_saved_model_answers_the_same(answering, log, tmp_path):
    answering.save_pretrained(tmp_path / "m", with_backbone=False)
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    assert loaded.feedback_head.scale == answering.feedback_head.scale
    before, after = (feedback_of(model, asked(log)) for model in (answering, loaded))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_a_folder_without_its_scale_is_refused(answering, tmp_path):
    answering.save_pretrained(tmp_path / "m", with_backbone=False)
    path = tmp_path / "m" / "model.json"
    described = json.loads(path.read_text(encoding="utf-8")) | {"feedback": None}
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="lacks feedback"):
        InfluenceModel.from_pretrained(tmp_path / "m")


def test_a_model_without_feedback_head_refuses_feedback(log):
    with pytest.raises(ExplanationError, match="no feedback head"):
        feedback_of(tiny.tiny_model(), asked(log))


# --- when ------------------------------------------------------------------------------------


def test_when_starts_at_nothing_and_moves_all_heads_then(log):
    model = tiny.tiny_model(when=True)
    batch = collate(model.encoder.encode(asked(log)))
    assert batch.when.tolist() == [17] * 3  # 5000 s: the bucket from 1 hour on
    with torch.no_grad():
        before = model(batch)
        plain = model.heads(QueryState(model.last_states(batch)))
        model.when.weight.zero_()
        without = model(batch)
    torch.testing.assert_close(without.item_logits, plain.item_logits)
    for name in ("item_logits", "behavior_logits"):
        assert (getattr(before, name) - getattr(plain, name)).abs().max() > 1e-3


def test_an_unknown_moment_and_an_empty_history_have_the_code_of_nothing(log):
    encoder = tiny.tiny_model().encoder
    history = asked(log)[0]
    unknown, empty = replace(history, query_time=None), history.keep(slice(0))
    assert empty.query_time == history.query_time
    assert encoder.encode([unknown, empty]).when.tolist() == [0, 0]
    with pytest.raises(DataError, match="7 s before the last event"):
        encoder.encode([replace(history, query_time=int(history.timestamps[-1]) - 7)])


def test_a_growing_history_is_asked_at_its_moment(log):
    model, history = tiny.tiny_model(when=True), asked(log)[1]
    grown = model.session(history.keep(slice(None)))
    torch.testing.assert_close(
        grown.prediction.item_logits, next(model.predict([history]))[1].item_logits
    )
    grown.ask(history.query_time + 10**6)
    later = next(model.predict([replace(history, query_time=history.query_time + 10**6)]))[1]
    torch.testing.assert_close(grown.prediction.item_logits, later.item_logits)
    assert grown.readings == 1
