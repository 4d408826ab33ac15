"""Adversarial, contrastive and fairness losses, and weights by inverse propensity."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from llm_influence.config.model import ItemHeadConfig
from llm_influence.config.run import RunConfig
from llm_influence.config.training import (
    AdversarialConfig,
    AugmentationConfig,
    ContrastiveConfig,
    FairnessConfig,
    PropensityConfig,
)
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError, DataError, SchemaError
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch
from llm_influence.training.augmentation import Negatives, Views
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import (
    NOBODY,
    Swaps,
    adversarial_loss,
    contrastive_loss,
    label_weights,
    perturbation,
)
from tests import tiny
from tests.training.runs import step_in_parts

# --- adversarial ---------------------------------------------------------------------------------


def test_every_window_is_moved_by_epsilon_along_its_own_gradient():
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 1e-6
    gradient[1, 2:] = 0  # padding
    gradient[2] = 0  # nothing to gain
    moved = perturbation(gradient, 0.7)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.tensor([0.7, 0.7, 0.0]))
    assert (moved[1, 2:] == 0).all()
    cosine = torch.cosine_similarity(moved[:2].flatten(1), gradient[:2].flatten(1))
    torch.testing.assert_close(cosine, torch.ones(2))


def test_the_loss_of_a_linear_function_grows_by_epsilon_times_its_slope():
    slope = torch.tensor([3.0, 4.0]).expand(2, 1, 2)
    config = AdversarialConfig(epsilon=0.5, weight=2.0)
    vectors = torch.ones(2, 1, 2)
    loss = adversarial_loss(lambda x: (slope * x).sum(), vectors, config)
    torch.testing.assert_close(loss, torch.tensor(14.0 + 2.0 * (14.0 + 2 * 0.5 * 5.0)))
    assert not vectors.requires_grad


@pytest.mark.parametrize(("kind", "style"), [("bert", "token"), ("gpt2", "text")])
def test_a_step_does_not_depend_on_its_cut_grows_the_loss_and_leaves_the_weights(kind, style):
    model, train = tiny.tiny_model(kind, style), split_log(tiny.small_log()).train
    windows = list(WindowDataset(train, model.encoder))[:7]
    collator = WindowCollator(train, model.encoder)
    inputs = collator(windows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective = NextEventObjective(model, adversarial=AdversarialConfig(epsilon=0.02)).eval()
    result = [step_in_parts(objective, collator, windows, cuts) for cuts in ([7], [1, 4, 2])]
    (whole, gradients), (cut, gradients_of_cut) = result
    assert cut == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients_of_cut, gradients, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        assert whole > 2.01 * float(NextEventObjective(model).eval()(**inputs)["loss"])
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


# --- contrastive ---------------------------------------------------------------------------------


def test_orthogonal_users_whose_views_agree_have_the_loss_of_a_closed_form():
    """Cosine 1 with the twin, 0 with the 2 (B - 1) views of others."""
    views = torch.eye(5)[None].repeat(2, 1, 1) * torch.tensor([3.0, 0.2])[:, None, None]
    losses = contrastive_loss(views, torch.arange(5), temperature=0.5)
    expected = math.log(1 + 8 * math.exp(-1 / 0.5))
    torch.testing.assert_close(losses, torch.full((5,), expected))


def test_views_that_are_all_the_same_leave_a_guess_among_them():
    losses = contrastive_loss(torch.ones(2, 4, 3), torch.arange(4), temperature=0.1)
    torch.testing.assert_close(losses, torch.full((4,), math.log(1 + 6)))


def test_windows_of_one_user_are_no_negatives_and_nobody_counts():
    torch.manual_seed(0)
    views = torch.randn(2, 4, 8)
    alone = contrastive_loss(views[:, :2], torch.tensor([0, 1]), temperature=0.2)
    result = contrastive_loss(views, torch.tensor([0, 1, NOBODY, NOBODY]), temperature=0.2)
    torch.testing.assert_close(result[:2], alone)
    assert result[2:].tolist() == [0, 0]
    same = contrastive_loss(views, torch.zeros(4, dtype=torch.long), temperature=0.2)
    assert same.abs().max() < 1e-6  # no negatives


def test_each_window_counts_by_its_labels_beside_the_usual_loss():
    model, train = tiny.tiny_model(), split_log(tiny.small_log()).train
    views = Views(AugmentationConfig(share=0.0, crop=0.5))
    windows = list(WindowDataset(train, model.encoder))[:6]
    inputs = WindowCollator(train, model.encoder, None, views, contrast=True)(windows)
    pairs, owners = inputs["pairs"], inputs["owners"]
    objective = NextEventObjective(model, contrastive=ContrastiveConfig(weight=0.3)).eval()
    with inference(model):
        whole = objective(**inputs)["loss"]
        usual = {name: inputs[name] for name in inputs.keys() - {"pairs", "owners"}}
        plain = objective(**usual)["loss"]
        states = model.last_states(EncodedBatch(**pairs)).view(2, 6, -1)
        each = contrastive_loss(states, owners, 0.1)
    counts = (inputs["labels"] != IGNORE).sum(dim=1)
    assert len(set(counts.tolist())) > 1
    torch.testing.assert_close(whole - plain, 0.3 * (counts * each).sum() / counts.sum())


@pytest.mark.parametrize("size", [3, 6])
def test_the_two_views_of_a_window_stand_in_the_same_place_of_both_halves(size):
    model, train = tiny.tiny_model(), split_log(tiny.small_log()).train
    drawn = Views(AugmentationConfig(share=0.0, crop=0.5))
    windows = list(WindowDataset(train, model.encoder))[:size]
    pairs = WindowCollator(train, model.encoder, None, drawn, contrast=True)(windows)["pairs"]
    for row, window in enumerate(windows):
        history = train.at(window.user, window.stop)
        for half, view in enumerate(drawn.pair(len(history), **window.draws_by())):
            shown = model.encoder.encode([history.keep(view.shown)]).input_ids
            place = half * size + row
            real = pairs["attention_mask"][place]
            assert pairs["input_ids"][place, real].tolist() == shown.tolist()


# --- fairness ------------------------------------------------------------------------------------


ON = FairnessConfig(features=["age"], weight=2.0)


@pytest.fixture(scope="module", params=["token", "text"])
def model(request, tmp_path_factory):
    line = "{item}" if request.param == "token" else "{behavior} {item};"
    path = tmp_path_factory.mktemp("t") / "aged.yaml"
    path.write_text(f'name: aged\nhistory: "of {{user.age}}"\nevent: "{line}"\n')
    config = tiny.run_config(
        style=request.param, rendering={"template": str(path)}, model={"dropout": 0.0}
    )
    return tiny.moved(InfluenceModel.build(config, tiny.small_log()), 0.1)


def inputs(model, config=ON):
    log = tiny.small_log()
    windows = WindowDataset(log, model.encoder)
    swaps = Swaps(config, model.encoder, seed=3)
    collate = WindowCollator(log, model.encoder, swaps=swaps)
    return collate([windows[row] for row in range(5)])


def loss(model, batch, config=ON):
    with torch.no_grad():
        return float(NextEventObjective(model, fairness=config)(**batch)["loss"])


def test_the_penalty_is_the_divergence_of_chances_at_every_label(model):
    batch = inputs(model)
    plain = {name: part for name, part in batch.items() if not name.startswith("swapped")}
    names = EncodedBatch.__slots__
    chances = []
    for place, read in (
        ("query_time", {name: batch[name] for name in names}),
        ("swapped_at", batch["swapped"]),
    ):
        with torch.no_grad():
            states = model.states(EncodedBatch(**read))
            rows = torch.arange(len(states))[:, None]
            logits = model.item_head(QueryState(states[rows, batch[place]]), model.item_vectors())
        chances.append(logits.double().softmax(-1)[batch["labels"] != IGNORE].numpy())
    p, q = chances
    expected = ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2 / len(p)
    assert expected > 1e-4
    assert loss(model, batch) - loss(model, plain) == pytest.approx(2 * expected, rel=1e-3)


def test_swapped_users_differ_in_the_feature_alone(model):
    log, swaps = tiny.small_log(), Swaps(ON, model.encoder, seed=3)
    for user in range(len(log)):
        history = log.at(user)
        changed = swaps.of(history, epoch=0, user=user, start=0)
        assert changed.user["age"] != history.user["age"]
        assert changed.user["age"] in model.encoder.vocabulary.features["age"]
        assert changed.items is history.items
    drawn = {swaps.of(log.at(0), epoch=epoch, user=0, start=0).user["age"] for epoch in range(20)}
    assert len(drawn) == 2


def test_it_is_off_by_default_and_needs_what_it_compares(model):
    assert "swapped" not in inputs(model, FairnessConfig())
    with pytest.raises(ConfigError, match="'gender'"):
        Swaps(FairnessConfig(features=["gender"], weight=1.0), model.encoder)
    with pytest.raises(ValueError, match="at least one of features"):
        FairnessConfig(weight=1.0)
    sampled = tiny.tiny_model(item_head={"loss": "sampled"})
    with pytest.raises(ConfigError, match="loss 'full'"):
        NextEventObjective(sampled, fairness=ON)
    assert RunConfig().train.fairness.weight == 0


# --- inverse propensity --------------------------------------------------------------------------


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
    result = weights_of(log, source="popularity", clip=0.3)
    expected = 1 / np.array([1, 0.5, 0.3, 0.3])  # square roots of 1, 1/4, 1/16 and 0
    np.testing.assert_allclose(result, expected / (expected @ counts / counts.sum()), rtol=1e-6)
    assert result @ counts / counts.sum() == pytest.approx(1)
    whole = weights_of(log, source="popularity", power=1, clip=0.01)
    np.testing.assert_allclose(whole[:3] / whole[0], [1, 4, 16], rtol=1e-6)


def test_exposure_is_a_column_and_unseen_items_may_have_none():
    log = log_of([3, 2, 1, 0], shown=[50, 10, 5, None])
    result = weights_of(log, source="exposure", column="shown", clip=0.2)
    np.testing.assert_allclose(result / result[0], [1, 5, 5, 5], rtol=1e-6)


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
        result = float(weighted(**inputs, num_items_in_batch=1)["loss"])
        assert result == pytest.approx(total, rel=1e-4)
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
    result = [step_in_parts(objective, collator, windows, cuts) for cuts in ([9], [1, 6, 2])]
    objective.zero_grad()
    assert result[1][0] == pytest.approx(result[0][0], rel=1e-5)
    torch.testing.assert_close(result[1][1], result[0][1], rtol=1e-3, atol=1e-6)


def test_weighted_labels_of_a_confounded_log_have_the_true_shares():
    """Items of equal interest, shown unequally: the weighted counts are even again."""
    random, shown = np.random.default_rng(0), np.array([1.0, 0.5, 0.2, 0.1])
    counts = random.multinomial(20_000, shown / shown.sum())
    log = log_of(counts, shown=shown)
    weighted = weights_of(log, source="exposure", column="shown") * counts
    np.testing.assert_allclose(weighted / weighted.sum(), 0.25, atol=0.02)
