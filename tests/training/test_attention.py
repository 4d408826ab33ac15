"""Attention in float32 inside a bf16 run on a CPU."""

import pytest
import torch
from transformers import TrainerCallback

from llm_influence.rendering.batch import collate
from llm_influence.training import finetune as module
from llm_influence.training.base_trainer import NAME, attend_as_usual, attend_in_float32
from llm_influence.training.finetune import finetune
from llm_influence.training.trainer import InfluenceTrainer
from tests import tiny
from tests.training.runs import config_in


def states_of(model, *, bf16):
    log = tiny.small_log()
    batch = collate(model.encoder.encode([log.at(user, 4 + user % 8) for user in range(8)]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.states(batch).float()[batch.attention_mask]


@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_in_float32_it_is_the_usual_attention(kind):
    model = tiny.tiny_model(kind)
    usual = states_of(model, bf16=False)
    attend_in_float32(model.backbone.model)
    torch.testing.assert_close(states_of(model, bf16=False), usual, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", tiny.BACKBONES)
def test_in_bf16_the_fused_attention_gets_float32(kind, monkeypatch):
    model, seen = tiny.tiny_model(kind), []
    fused = torch.nn.functional.scaled_dot_product_attention

    def noting(query, *rest, **options):
        found = fused(query, *rest, **options)
        seen.append(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    attend_in_float32(model.backbone.model)
    states_of(model, bf16=True)
    assert set(seen) == {torch.float32}
    attend_as_usual(model.backbone.model)
    seen.clear()
    states_of(model, bf16=True)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", NAME), ("fp32", "sdpa")])
def test_a_run_trains_with_it_where_it_helps_and_leaves_the_usual_one(
    tmp_path, monkeypatch, precision, wanted
):
    used = []

    class Noting(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            used.append(model.model.backbone.model.config._attn_implementation)

    class Watched(InfluenceTrainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.add_callback(Noting())
            built.append(self.influence_model)

    built = []
    monkeypatch.setattr(module, "InfluenceTrainer", Watched)
    monkeypatch.setattr("llm_influence.training.base_trainer.on_cpu", lambda: True)
    finetune(config_in(tmp_path, train={"epochs": 1, "batch_size": 4, "precision": precision}))
    assert set(used) == {wanted}
    assert built[0].backbone.model.config._attn_implementation == "sdpa"
