"""Prefixes as training examples, and positions that count from the end of a history."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.prefix_cache import prefix_support
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError, ModelError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.session import Session
from llm_influence.rendering.encoder import collate
from llm_influence.training.augmentation import EventDropout
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.objective import NextEventObjective
from llm_influence.types import Event
from tests import tiny
from tests.training.runs import config_in, feedback_head

FROM_END = {"model": {"positions": "end", "dropout": 0.0}, "train": {"examples": "prefixes"}}


def from_end(log, kind="bert", style="token"):
    sections = {name: dict(options) for name, options in FROM_END.items()}
    base = tiny.run_config(kind, style).model_dump()
    sections["model"] = base["model"] | sections["model"]
    sections["train"] = base["train"] | sections["train"]
    return InfluenceModel.build(RunConfig.model_validate(base | sections), log)


@pytest.fixture(scope="module")
def log():
    return split_log(tiny.small_log()).train


def test_every_event_is_the_label_of_one_prefix_with_the_last_events_before_it(log):
    encoder = InfluenceModel.build(tiny.run_config(rendering={"max_events": 3}), log).encoder
    windows = list(WindowDataset(log, encoder, prefixes=True))
    labelled = sorted((w.user, w.stop) for w in windows)
    assert labelled == [(u, n) for u, size in enumerate(log.lengths) for n in range(size)]
    assert all(w.start == max(0, w.stop - 3) for w in windows)
    inputs = WindowCollator(log, encoder)(windows)
    events = [log.offsets[w.user] + w.stop for w in windows]
    assert inputs["labels"].tolist() == log.items[events][:, None].tolist()
    assert inputs["query_time"].shape == (log.num_events, 1)


def test_the_loss_of_prefixes_is_the_causal_loss(log):
    head = feedback_head(aggregate_days=2.0)
    config = tiny.run_config(
        rendering={"max_events": 30}, model={"when": True, "feedback_head": head}
    )
    model = InfluenceModel.build(config, log)
    tiny.moved(model)
    losses = []
    for prefixes in (False, True):
        windows = list(WindowDataset(log, model.encoder, prefixes=prefixes))
        collate_windows = WindowCollator(
            log, model.encoder, feedback=model.config.feedback_head, when=True
        )
        inputs = collate_windows(windows)
        assert (inputs["labels"] != IGNORE).sum() == log.num_events
        with torch.no_grad():
            losses.append(float(NextEventObjective(model).eval()(**inputs)["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_every_prefix_has_its_own_draw(log):
    encoder = InfluenceModel.build(tiny.run_config(), log).encoder
    windows = [
        w
        for w in WindowDataset(log, encoder, prefixes=True)
        if w.user == int(np.argmax(log.lengths))
    ]
    draws = [window.draws_by() for window in windows]
    assert len({tuple(draw.items()) for draw in draws}) == len(windows)
    dropout = EventDropout(0.8, 1.0)
    one, other = (WindowCollator(log, encoder, dropout)(windows) for _ in range(2))
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert len(set(one["num_events"].tolist())) > 1


@pytest.mark.parametrize(("kind", "style"), [("bert", "token"), ("gpt2", "text")])
def test_the_last_token_has_one_position_for_all_lengths_and_batches(log, kind, style):
    model = from_end(log, kind, style)
    histories = [log.at(int(np.argmax(log.lengths)), n) for n in range(1, 6)]
    batch = collate(model.encoder.encode(histories))
    positions = model.positions(batch)
    last = positions.gather(1, batch.last()[:, None])[:, 0] - model.backbone.first_position
    assert set(last.tolist()) == {model.encoder.longest - 1}
    hidden = batch.hide(torch.zeros(5, 5, dtype=torch.bool))
    assert torch.equal(model.positions(hidden), positions)  # removal `mask` moves no token
    with torch.no_grad():
        together = model(batch).item_logits
        for row, history in enumerate(histories):
            alone = model(collate(model.encoder.encode([history]))).item_logits[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)


def test_positions_matter_and_survive_saving(log, tmp_path):
    model = from_end(log)
    model.save_pretrained(tmp_path)
    loaded = InfluenceModel.from_pretrained(tmp_path)
    histories = [log.at(int(np.argmax(log.lengths)), n) for n in (2, 5)]
    batch = collate(model.encoder.encode(histories))
    with torch.no_grad():
        ours, theirs = model(batch).item_logits, loaded(batch).item_logits
        torch.testing.assert_close(theirs, ours)
        model.positions = replace(model.positions, from_end=False)
        assert (model(batch).item_logits - ours).abs().max() > 1e-4


def test_sessions_and_explanations_of_positions_from_the_end(log):
    model = from_end(log)
    history = log.at(int(np.argmax(log.lengths)), 5)
    assert not prefix_support(model).works
    session = Session(model, log.at(int(np.argmax(log.lengths)), 4))
    before = session.readings
    item, behavior = log.catalogue.ids[int(history.items[4])], int(history.behaviors[4])
    name = model.encoder.vocabulary.behaviors[behavior]
    moment, value = int(history.timestamps[4]), float(history.values[4])
    session.append(Event(str(item), name, moment, None if np.isnan(value) else value))
    assert session.readings == before + 1
    with torch.no_grad():
        expected = model(collate(model.encoder.encode([history]))).item_logits
        torch.testing.assert_close(session.prediction.item_logits, expected)
        scores = []
        for n in range(len(history)):
            kept = history.keep(np.arange(len(history)) != n)
            scores.append(model(collate(model.encoder.encode([kept]))).item_logits[0])
    target = int(history.items[0])
    influence = Explainer(model, method="leave_one_out", removal="drop").explain(
        history, target=log.catalogue.ids[target].as_py()
    )
    odds = [torch.logit(s.double().softmax(0)[target]) for s in [expected[0], *scores]]
    by_hand = [float(odds[0] - odd) for odd in odds[1:]]
    np.testing.assert_allclose(influence.values, by_hand, atol=2e-3)


def test_several_predictions_of_one_history_are_refused(log):
    model = from_end(log)
    inputs = WindowCollator(log, model.encoder)(list(WindowDataset(log, model.encoder)))
    with pytest.raises(ModelError, match="positions"):
        NextEventObjective(model)(**inputs)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"model": {"positions": "end"}}, "train.examples prefixes"),
        (
            {
                "model": {"backbone": "gru", "adapter": {"kind": "full"}, "positions": "end"},
                "train": {"examples": "prefixes"},
            },
            "no positions",
        ),
    ],
)
def test_positions_from_the_end_need_prefixes_and_a_transformer(sections, named):
    with pytest.raises(ConfigError, match=named):
        RunConfig.of(sections, "run.yaml")


@pytest.mark.parametrize("memory", [False, True])
def test_a_run_from_end_to_end(tmp_path, memory):
    model = {"item_head": {"memory": {"enabled": memory}}, "positions": "end"}
    crops = {"crop": 0.3, "mask": 0.3, "share": 0.8}
    run = config_in(
        tmp_path,
        model=model | {"feedback_head": feedback_head()},
        train={
            **{"examples": "prefixes", "event_dropout": 0.5, "augmentation": crops},
            **{"contrastive": {"weight": 0.1}, "propensity": {"source": "popularity"}},
        },
    )
    finetune(run)
    assert InfluenceModel.from_pretrained(tmp_path / "run").config.positions == "end"
