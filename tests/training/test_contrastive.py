"""InfoNCE against closed forms, and its place in the loss of a step."""

import math

import pytest
import torch

from llm_influence.config.training import AugmentationConfig, ContrastiveConfig
from llm_influence.data.splits import split_log
from llm_influence.modeling.backbone import inference
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.augmentation import Views
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import NOBODY, contrastive_loss
from tests import tiny


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
    found = contrastive_loss(views, torch.tensor([0, 1, NOBODY, NOBODY]), temperature=0.2)
    torch.testing.assert_close(found[:2], alone)
    assert found[2:].tolist() == [0, 0]
    same = contrastive_loss(views, torch.zeros(4, dtype=torch.long), temperature=0.2)
    assert same.abs().max() < 1e-6  # nobody to be told from


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
        states = model.query(EncodedBatch(**pairs)).view(2, 6, -1)
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
