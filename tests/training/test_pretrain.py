"""Pretraining."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_influence.config.training import PretrainingConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.template import FIELDS
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.training import pretrain as module
from llm_influence.training.batches import IGNORE, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.item_losses import ItemLoss
from llm_influence.training.pretrain import LanguageCollator, LanguageObjective, predictable
from tests import tiny
from tests.training.runs import config_in, interrupted, largest_difference, walk_events, weights

MASKED = PretrainingConfig(epochs=1, objective="masked", mask_share=0.3)
CAUSAL = PretrainingConfig(epochs=1, objective="causal")


@pytest.fixture(scope="module", params=["token", "text"])
def model(request):
    return tiny.tiny_model("bert", request.param)


def objective_of(model, config):
    return LanguageObjective(model, config, ItemLoss(model)).eval()


def inputs_of(model, log, config, count=6):
    windows = list(WindowDataset(log, model.encoder))[:count]
    return LanguageCollator(log, model.encoder, config)(windows)


def states_of(objective, inputs):
    with inference(objective):
        return objective.states(**{name: inputs[name] for name in inputs.keys() - {"labels"}})


# --- what is predicted, and what is seen of it ---------------------------------------------


def test_hidden_tokens_alone_are_predicted_and_are_not_in_the_batch(model, train):
    inputs = inputs_of(model, train, MASKED)
    plain = inputs_of(model, train, CAUSAL)
    hidden, known = inputs["hidden"], inputs["labels"] != IGNORE
    assert torch.equal(hidden, known)
    assert torch.equal(inputs["labels"][hidden], plain["input_ids"][hidden])
    assert (inputs["input_ids"][hidden] == 0).all()
    assert torch.equal(inputs["input_ids"][~hidden], plain["input_ids"][~hidden])
    assert hidden.any(dim=1).all()
    share = float(hidden.sum() / (plain["labels"] != IGNORE).sum())
    assert share == pytest.approx(0.3, abs=0.1)


def test_a_hidden_item_is_seen_by_no_state_of_its_own_event_or_others(train):
    """Another item in its place changes the label, and nothing else."""
    model = tiny.tiny_model("bert", "token")
    before = inputs_of(model, train, MASKED)
    is_item = before["field_index"] == FIELDS.index("item")
    row, place = (int(n) for n in (before["hidden"] & is_item).nonzero()[0])
    window = WindowDataset(train, model.encoder).windows[row]
    event = int(before["event_index"][row, place])
    items = train.items.copy()
    where = int(train.offsets[window.user]) + window.start + event
    items[where] = (items[where] + 1) % 30
    after = inputs_of(model, replace(train, items=items), MASKED)
    changed = (before["labels"] != after["labels"]).nonzero().tolist()
    assert changed == [[row, place]]
    objective = objective_of(model, MASKED)
    assert torch.equal(states_of(objective, before), states_of(objective, after))


@pytest.mark.parametrize(("kind", "style"), [("gpt2", "text"), ("llama", "token")])
def test_a_causal_prediction_sees_nothing_of_its_token_nor_of_later_ones(train, kind, style):
    model = tiny.tiny_model(kind, style)
    inputs, objective = inputs_of(model, train, CAUSAL), objective_of(model, CAUSAL)
    before = states_of(objective, inputs)
    place = int((inputs["labels"][0] != IGNORE).nonzero()[5])
    inputs["input_ids"][:, place:] = inputs["input_ids"][:, place:].flip(0)
    after = states_of(objective, inputs)
    torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
    assert (after[:, place] - before[:, place]).abs().max() > 1e-4


@pytest.mark.parametrize("config", [MASKED, CAUSAL])
def test_values_and_labels_are_no_target(model, train, config):
    """Other values leave the same targets in the same places."""
    values = np.where(np.isnan(train.values), np.nan, 6 - train.values).astype(np.float32)
    one, other = (inputs_of(model, log, config) for log in (train, replace(train, values=values)))
    assert torch.equal(one["labels"], other["labels"])
    assert not torch.equal(one["input_ids"], other["input_ids"])  # though they may be read
    fields = one["field_index"][one["labels"] != IGNORE].unique().tolist()
    assert FIELDS.index("value") not in fields
    assert -1 not in fields
    assert len(fields) == 3


def test_what_is_hidden_depends_on_seed_epoch_and_window_alone(model, train):
    windows = list(WindowDataset(train, model.encoder))[:8]

    def hidden(seed=0, epoch=0, size=8):
        collator = LanguageCollator(train, model.encoder, MASKED, seed=seed)
        drawn = [replace(window, epoch=epoch) for window in windows]
        parts = [collator(drawn[start : start + size]) for start in range(0, 8, size)]
        return [
            row[real].tolist()
            for part in parts
            for row, real in zip(part["hidden"], part["attention_mask"], strict=True)
        ]

    assert hidden() == hidden(size=3)
    assert hidden() != hidden(seed=1)
    assert hidden() != hidden(epoch=1)


# --- the loss ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", ["{behavior} {item} {value} {gap}", "{item} {weekday} {hour} {times}"]
)
def test_units_are_scored_by_the_item_head_among_those_of_their_field(tmp_path, train, event):
    template = tmp_path / "own.yaml"
    template.write_text(f"{{name: own, event: '{event}'}}")
    config = tiny.run_config("bert", "token", rendering={"template": str(template)})
    model = InfluenceModel.build(config, train).eval()
    inputs, objective = inputs_of(model, train, MASKED), objective_of(model, MASKED)
    states, labels, pieces = (
        states_of(objective, inputs),
        inputs["labels"],
        model.encoder.token_cache,
    )
    assert isinstance(pieces, IdTokenCache)
    total = 0.0
    with inference(objective):
        for row, place in (labels != IGNORE).nonzero().tolist():
            field = FIELDS[int(inputs["field_index"][row, place])]
            units = torch.tensor(pieces.ids_of(field))
            scores = model.item_head(
                QueryState(states[row, place]), model.embeddings(units)
            ).log_softmax(dim=0)
            total -= float(scores[units == labels[row, place]])
        loss = objective(**inputs)["loss"]
    assert float(loss) == pytest.approx(total / int((labels != IGNORE).sum()), rel=1e-4)


@pytest.mark.parametrize(("kind", "config"), [("bert", MASKED), ("gpt2", CAUSAL)])
def test_words_are_scored_by_their_input_vectors(train, kind, config, monkeypatch):
    monkeypatch.setattr("llm_influence.training.pretrain.CHUNK", 7)
    model = tiny.tiny_model(kind, "text")
    inputs, objective = inputs_of(model, train, config), objective_of(model, config)
    with inference(objective):
        loss = objective(**inputs)["loss"]
        states, labels = states_of(objective, inputs), inputs["labels"]
        if config is CAUSAL:
            states, labels = states[:, :-1], labels[:, 1:]
        known = labels != IGNORE
        words = torch.nn.functional.normalize(model.body.get_input_embeddings().weight, dim=-1)
        cosines = torch.nn.functional.normalize(states[known], dim=-1) @ words.T  # untrained head
        expected = torch.nn.functional.cross_entropy(cosines / 0.07, labels[known])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_only_a_decoder_or_one_token_an_event_is_causal_and_only_an_encoder_masked():
    with pytest.raises(ConfigError, match="encoder sees all tokens of an event"):
        objective_of(tiny.tiny_model("bert", "token"), CAUSAL)
    with pytest.raises(ConfigError, match="decoder model never sees"):
        objective_of(tiny.tiny_model("gpt2", "token"), MASKED)
    with pytest.raises(ConfigError, match="recurrent model never sees"):
        objective_of(tiny.tiny_model("gru", "token"), MASKED)


def test_a_recurrent_backbone_is_causal_where_its_states_are_as_wide_as_its_words(train, log):
    for kind, style in (("gru", "token"), ("lstm", "text")):
        model = tiny.tiny_model(kind, style)
        inputs, objective = inputs_of(model, train, CAUSAL), objective_of(model, CAUSAL)
        loss = objective(**inputs)["loss"]
        loss.backward()
        assert torch.isfinite(loss)
        assert model.backbone.model.cell.weight_ih_l0.grad.abs().max() > 0
    narrow = tiny.recurrent_options("gru", "text") | {
        "recurrent": {"width": 16, "words": tiny.backbone_folder("bert")}
    }
    config = tiny.run_config("gru", "text", model=narrow)
    with pytest.raises(ConfigError, match=r"vectors of 32 numbers, states 16.*width 32"):
        objective_of(InfluenceModel.build(config, log), CAUSAL)


def test_predictable_are_words_of_fields_and_not_padding(model, train):
    inputs = inputs_of(model, train, CAUSAL)
    names = ("input_ids", "attention_mask", "event_index", "field_index")
    ids, visible, events, fields = (inputs[name] for name in names)
    result = predictable(type("Batch", (), {"field_index": fields}))
    assert ids.shape == result.shape
    assert (visible & (events >= 0))[result].all()


# --- whole runs ----------------------------------------------------------------------------

LEARN = {"epochs": 2, "learning_rate": 5e-3}
TRAIN = {"epochs": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("kind", "style", "objective"),
    [
        ("bert", "token", "masked"),
        pytest.param("gpt2", "text", "causal", marks=pytest.mark.slow),
    ],
)
def test_a_run_pretrains_once_and_resumes_to_the_weights_of_an_unbroken_one(
    tmp_path, monkeypatch, kind, style, objective
):
    pretraining = {**LEARN, "objective": objective, "mask_share": 0.3}
    configs = []
    for name in ("unbroken", "broken", "without"):
        (tmp_path / name).mkdir()
        block = {} if name == "without" else {"pretraining": pretraining}
        configs.append(config_in(tmp_path / name, kind=kind, style=style, train=TRAIN, **block))
    unbroken = finetune(configs[0])
    metrics = json.loads((unbroken.folder / "metrics.json").read_text())["pretraining"]
    assert len(metrics["loss"]) == 2
    assert metrics["loss"][1] < metrics["loss"][0]

    with interrupted(module, trainer="PretrainingTrainer"):
        finetune(configs[1])
    resumed = finetune(configs[1], resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6
    again = json.loads((resumed.folder / "metrics.json").read_text())["pretraining"]
    assert again["loss"] == pytest.approx(metrics["loss"])
    without = finetune(configs[2])
    assert "pretraining" not in json.loads((without.folder / "metrics.json").read_text())
    assert largest_difference(weights(without.folder), weights(unbroken.folder)) > 1e-3

    (resumed.folder / "metrics.json").unlink()  # fine-tuning runs again
    monkeypatch.setattr(module, "PretrainingTrainer", lambda *_: pytest.fail("pretrained twice"))
    finetune(configs[1], resume=True)
    assert largest_difference(weights(resumed.folder), weights(unbroken.folder)) < 1e-6


def test_pretraining_alone_learns_what_always_comes_next(tmp_path):
    """The item head is tied to the input: causal language modelling of one token an event."""
    rates = {"learning_rate": 1e-9, "item_learning_rate": 5e-3, "batch_size": 8}
    sections = {
        "rendering": {"template": "item"},
        "train": {"epochs": 1, **rates},
        "pretraining": {"epochs": 15, "objective": "causal", "learning_rate": 5e-3},
        "model": {"adapter": {"rank": 16, "dropout": 0.0}, "dropout": 0.0},
    }
    config = config_in(tmp_path, walk_events(users=40), **sections)
    assert finetune(config).test["mrr"] > 0.8
