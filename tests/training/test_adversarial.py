"""The fast gradient method: how far vectors are moved, where to, and what stays."""

import pytest
import torch

from llm_influence.config.training import AdversarialConfig
from llm_influence.data.splits import split_log
from llm_influence.training.batches import WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import adversarial_loss, perturbation
from tests import tiny
from tests.training.runs import step_in_parts


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
    found = [step_in_parts(objective, collator, windows, cuts) for cuts in ([7], [1, 4, 2])]
    (whole, gradients), (cut, gradients_of_cut) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients_of_cut, gradients, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        assert whole > 2.01 * float(NextEventObjective(model).eval()(**inputs)["loss"])
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
