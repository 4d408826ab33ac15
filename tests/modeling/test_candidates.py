"""Candidate features: exact values, no leak of trained labels, every removal, saving."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llm_influence import Catalogue, Explainer, Feedback
from llm_influence.attribution.renderings import REMOVALS, Players
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.modeling import candidates as module
from llm_influence.modeling.candidates import FOLDS, HALF_LIVES, PRIOR, RIDGE, SHARPNESS, TASTES
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training.batches import WindowCollator, WindowDataset, encoded_batch
from tests import tiny

HEAD = {"weight": 1.0, "kind": "ordinal", "positive_from": 4.0, "hidden": 8}
TARGET = Feedback("i3")


def built(style="token", template="full", log=None, **head):
    config = tiny.run_config(
        "bert",
        style,
        rendering={"template": template} if style == "token" else {},
        model={"feedback_head": {**HEAD, "candidate_features": True, **head}, "when": True},
    )
    return tiny.moved(InfluenceModel.build(config, log or tiny.small_log()))


@pytest.fixture(scope="module", params=["full", "fused"])
def model(request):
    return built(template=request.param)


@pytest.fixture(scope="module")
def history():
    return tiny.small_log().at(7).keep(slice(-8, None))


def features(model, query, item=3):
    """(F,) features of a candidate before standardisation."""
    part = model.candidates
    found = part(query.events, query.folds, torch.tensor([item]).expand(len(query)))
    return (found * part.deviation + part.mean)[0].detach().numpy()


def by_hand(model, history, kept, item=3):
    """The features in the order of the module, event by event."""
    part, columns = model.candidates, model.encoder.vocabulary.columns([history])
    codes = columns.codes
    counts, means = part.tables[FOLDS].T.numpy()
    tastes, texts = part.tastes[FOLDS].double().numpy(), part.texts.numpy()
    events = [n for n in range(len(history)) if kept[n]]
    similar = {n: np.exp(SHARPNESS * (texts[codes["item"][n]] @ texts[item] - 1)) for n in events}
    found = [np.log1p(counts[item]), means[item]]
    for related in (lambda n: float(codes["item"][n] == item), similar.__getitem__):
        kinds = [[n for n in events if codes["behavior"][n] == b] for b in range(3)]
        found += [np.log1p(sum(map(related, kind))) for kind in kinds]
    rated = [n for n in events if not np.isnan(history.values[n])]
    residual = {n: history.values[n] - means[codes["item"][n]] for n in rated}

    def mean(weights, values, prior):
        total = sum(weights[n] * values[n] for n in rated)
        return total / (sum(weights[n] for n in rated) + prior)

    ones = dict.fromkeys(rated, 1.0)
    user = mean(ones, residual, PRIOR)
    own = {n: residual[n] - user for n in rated}
    same = {n: float(codes["item"][n] == item) for n in rated}
    found += [np.log1p(len(rated)), user, mean(ones, {n: residual[n] ** 2 for n in rated}, PRIOR)]
    for half_life in HALF_LIVES:
        recent = {n: 0.5 ** ((len(history) - 1 - n) / half_life) for n in rated}
        found.append(mean(recent, residual, 1.0))
    found += [mean(same, own, 1.0), mean(similar, own, module.SIMILAR_PRIOR)]
    found.append(np.log1p(sum(same.values())))
    matrix, side = RIDGE * np.eye(TASTES), np.zeros(TASTES)
    for n in rated:
        vector = tastes[codes["item"][n]]
        matrix += np.outer(vector, vector)
        side += own[n] * vector
    found.append(np.linalg.solve(matrix, side) @ tastes[item])
    return np.array(found)


def test_features_are_those_of_a_loop_over_the_events(model, history):
    for count in (0, 1, len(history)):
        part = history.keep(slice(count))
        for item in (3, int(history.items[0])):
            expected = by_hand(model, part, np.ones(count, bool), item)
            with torch.no_grad():
                found = features(model, model.read([part]), item)
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_batch_and_every_place_give_the_features_of_the_history_alone(model, history):
    short = tiny.small_log().at(2)
    batch = collate(model.encoder.encode([short, history]))
    with torch.no_grad():
        together = features(model, model.query(batch)[1:])
        placed = model.query_at(batch, batch.ends)
        np.testing.assert_allclose(together, features(model, model.read([history])), atol=1e-5)
        for count in range(len(history) + 1):
            alone = features(model, model.read([history.keep(slice(count))]))
            np.testing.assert_allclose(
                features(model, placed[1, count : count + 1]), alone, atol=1e-5
            )


@pytest.mark.parametrize("removal", REMOVALS)
def test_removed_events_leave_the_features_of_the_others(model, history, removal):
    kept = np.ones(len(history), bool)
    kept[[1, len(history) - 1]] = False
    read = {}
    values = ValueFunction(model, [history], bind(TARGET, model, [history]), removal)
    queries = values._queries

    def noted(*parts):
        read["query"] = queries(*parts)
        return read["query"]

    values._queries = noted
    values([kept[None]])
    expected = by_hand(model, history, kept)
    np.testing.assert_allclose(features(model, read["query"]), expected, atol=1e-4)


def test_a_removed_value_leaves_the_event_without_its_label(model, history):
    found = Explainer(model, "leave_one_out", players=Players("fields")).explain(history, TARGET)
    assert np.isfinite(found.values).all()
    batch = collate(model.encoder.encode([history]))
    presence = batch.attention_mask.float()
    field = module.FIELDS.index("value")
    if "value" in model.encoder.template.added:
        place = model.encoder.template.added.index("value")
        batch.added_ids[..., place] = -1
    else:
        presence = presence * (batch.field_index != field)
    item, behavior, value = model.candidates.shares(batch, presence).unbind(dim=-1)
    assert torch.stack([item, behavior, 1 - value]).eq(1).all()


def test_a_user_s_own_labels_are_not_in_the_tables_that_train_the_user():
    log = tiny.small_log()
    values = log.values.copy()
    user = 7
    own = slice(log.offsets[user], log.offsets[user + 1])
    values[own] = np.where(np.isnan(values[own]), np.nan, 6 - values[own])
    changed = log.prefix(log.lengths)
    object.__setattr__(changed, "values", values)
    models = [built(log=part) for part in (log, changed)]
    fold = int(module.user_folds([f"u{user}"])[0])
    tables = [part.candidates.tables for part in models]
    torch.testing.assert_close(tables[0][fold, :, 0], tables[1][fold, :, 0])
    shift = models[0].candidates.base - models[1].candidates.base  # the prior of all users
    counts = tables[0][fold, :, 0]
    torch.testing.assert_close(
        tables[0][fold, :, 1] - tables[1][fold, :, 1], shift * PRIOR / (counts + PRIOR)
    )
    assert not torch.allclose(tables[0][FOLDS], tables[1][FOLDS])


def test_training_reads_the_table_without_the_user_s_fold():
    log = tiny.small_log()
    model = built(log=log)
    collator = WindowCollator(log, model.encoder, feedback=model.config.feedback_head)
    windows = WindowDataset(log, model.encoder).windows
    inputs = collator(windows)
    folds = module.user_folds(log.user_ids.to_pylist())[[w.user for w in windows]]
    np.testing.assert_array_equal(inputs["folds"], folds)
    model.train()
    query = model.query_at(encoded_batch(inputs), inputs["query_time"], folds=inputs["folds"])
    assert (query.folds == inputs["folds"][:, None]).all()
    items = torch.full((len(windows),), 3)
    found = model.candidates(query.events[:, 0], query.folds[:, 0], items)
    found = found * model.candidates.deviation + model.candidates.mean
    torch.testing.assert_close(found[:, 1], model.candidates.tables[inputs["folds"], 3, 1])


def test_labels_that_the_model_cannot_read_leave_the_residuals_out():
    assert built(template="item").candidates.reads_labels is False
    assert built(template="full").candidates.size - built(template="item").candidates.size > 6


def test_style_text_has_the_same_features(history):
    model, history = built("text"), history.keep(slice(-3, None))
    expected = by_hand(model, history, np.ones(len(history), bool))
    with torch.no_grad():
        np.testing.assert_allclose(features(model, model.read([history])), expected, atol=1e-4)


def test_paths_with_candidate_features_add_up_to_the_value(model, history):
    with torch.no_grad():
        model.feedback_head.wide.weight.fill_(0.05)
    for method in ("integrated_gradients", "event_path_integrated_gradients"):
        found = Explainer(model, method).explain(history, TARGET)
        assert found.quality.completeness_gap < 0.02


def test_saved_models_and_new_items(model, history, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = InfluenceModel.from_pretrained(tmp_path / "model")
    codes = torch.tensor([3]), torch.tensor([0])
    with torch.no_grad():
        ours, theirs = (m.feedback(m.read([history]), *codes) for m in (again, model))
    torch.testing.assert_close(ours, theirs)
    again.add_items(Catalogue.from_table(tiny.items_table(31).slice(30)))
    with torch.no_grad():
        found = features(again, again.read([history]), 30)
        old = features(again, again.read([history]), 3)
    np.testing.assert_allclose(found[:2], [0, float(again.candidates.base)], atol=1e-5)
    np.testing.assert_allclose(old, features(model, model.read([history]), 3), atol=1e-5)
    assert F.normalize(again.candidates.texts[30], dim=0).norm() == pytest.approx(1, abs=1e-4)


def test_without_the_option_nothing_changes():
    model = built(candidate_features=False)
    assert model.candidates is None
    assert model.feedback_head.mix.in_features == 3 * 8


def test_an_untrained_head_predicts_what_the_features_alone_predict():
    log = tiny.small_log(users=60)
    config = tiny.run_config("bert", model={"feedback_head": {**HEAD, "candidate_features": True}})
    model = InfluenceModel.build(config, log).eval()
    head, labels, scores = model.trained_feedback, [], []
    batch = collate(model.encoder.encode([log.at(user) for user in range(len(log))]))
    folds = torch.from_numpy(module.user_folds(log.user_ids.to_pylist()))
    with torch.no_grad():
        query = model.query_at(batch, batch.ends[:, :-1], folds=folds)
        for row, user in enumerate(range(len(log))):
            kept = int(batch.num_events[row])
            items, codes = batch.records[row, :kept, 0], batch.records[row, :kept, 1]
            found = model.feedback_scores(query[row, :kept], items, codes)
            values = log.at(user).values[-kept:]
            labels.append(values[~np.isnan(values)])
            scores.append(found[torch.from_numpy(~np.isnan(values))])
        scores, labels = torch.cat(scores), torch.from_numpy(np.concatenate(labels))
        fitted = head.link.loss(scores, labels).mean()
        assert fitted < head.link.loss(torch.zeros_like(scores), labels).mean()
    features = head.candidates(query.events[:, 0], query.folds[:, 0], batch.records[:, 0, 0])
    assert features.shape == (60, head.candidates.size)
