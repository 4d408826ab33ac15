"""Order of windows, float32 attention under bf16, and adapters that change while they train."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llm_influence.data.splits import split_log
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training import finetune as module
from llm_influence.training.base_trainer import (
    NAME,
    LengthSampler,
    attend_as_usual,
    attend_in_float32,
)
from llm_influence.training.batches import WindowCollator, WindowDataset
from llm_influence.training.finetune import finetune
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.trainer import InfluenceTrainer, training_arguments
from tests import tiny
from tests.training.runs import config_in, largest_difference


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(1, 50, size=203).tolist()


def test_every_window_is_read_once_an_epoch(lengths):
    sampler = LengthSampler(lengths, 8, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(203))


def test_batches_hold_less_padding_than_at_random(lengths):
    order = list(LengthSampler(lengths, 8, seed=0))
    drawn = np.random.default_rng(1).permutation(203)
    assert _padded(order, lengths) < 0.75 * _padded(drawn, lengths)


def test_the_order_follows_from_seed_and_epoch(lengths):
    first, again, other = (LengthSampler(lengths, 8, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)


def test_long_windows_do_not_come_first(lengths):
    order = list(LengthSampler(lengths, 8, seed=0))
    halves = [np.mean([lengths[i] for i in half]) for half in (order[:100], order[100:200])]
    assert abs(halves[0] - halves[1]) < 8


def _padded(order, lengths):
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 203, 8)]
    return sum(max(batch) * len(batch) for batch in batches)


def test_a_run_reads_its_windows_in_a_new_order_every_epoch(tmp_path, monkeypatch):
    orders, read = [], LengthSampler.__iter__

    def noted(self):
        orders.append(list(read(self)))
        return iter(orders[-1])

    monkeypatch.setattr(LengthSampler, "__iter__", noted)
    finetune(config_in(tmp_path, train={"epochs": 2, "batch_size": 4}))
    assert len(orders) == 2
    assert orders[0] != orders[1]


# --- attention -----------------------------------------------------------------------------------


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
        result = fused(query, *rest, **options)
        seen.append(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    attend_in_float32(model.backbone.model)
    states_of(model, bf16=True)
    assert set(seen) == {torch.float32}
    attend_as_usual(model.backbone.model)
    seen.clear()
    states_of(model, bf16=True)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(("precision", "expected"), [("bf16", NAME), ("fp32", "sdpa")])
def test_a_run_trains_with_it_where_it_helps_and_leaves_the_usual_one(
    tmp_path, monkeypatch, precision, expected
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
    assert set(used) == {expected}
    assert built[0].backbone.model.config._attn_implementation == "sdpa"


# --- adapter schedule ----------------------------------------------------------------------------


ADALORA = {"kind": "adalora", "rank": 2, "initial_rank": 4, "prune_from": 0.25}
TRAIN = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "patience": 4}


class Watch(TrainerCallback):
    """Writes down the sum of ranks after every step; may break the run off."""

    def __init__(self, adapter, break_after: float = float("inf")) -> None:
        self.adapter, self.break_after, self.ranks = adapter, break_after, []

    def on_step_begin(self, args, state, control, **_):
        if state.global_step >= self.break_after:
            raise InterruptedError

    def on_step_end(self, args, state, control, **_):
        self.ranks.append(sum(self.adapter.ranks().values()))


def trainer_of(config, **watch) -> tuple[InfluenceTrainer, Watch]:
    split = split_log(open_data(config.data), config.data.split)
    model = InfluenceModel.build(config, split.train)
    arguments = training_arguments(config, Path(config.output), 1)
    trainer = InfluenceTrainer(config, model, split, args=arguments)
    trainer.add_callback(result := Watch(model.adapter, **watch))
    return trainer, result


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the optimiser's left out."""
    names = ("heads", "adapter/adapter_model", "backbone/model", "adapter_progress")
    files = [folder / f"{name}.safetensors" for name in names]
    return {
        f"{f.name}/{n}": t.float() for f in files if f.is_file() for n, t in load_file(f).items()
    }


def test_ranks_of_adalora_fall_to_the_target_and_stay_there_on_disk(tmp_path, log):
    config = config_in(tmp_path, train=TRAIN, model={"adapter": ADALORA, "dropout": 0.0})
    trainer, watch = trainer_of(config)
    trainer.train()
    adapter = trainer.influence_model.adapter
    steps, matrices = trainer.state.max_steps, len(adapter.ranks())
    assert steps >= 10
    assert len(watch.ranks) == steps
    first, last = round(0.25 * steps), round(0.7 * steps)
    assert set(watch.ranks[1:first]) == {4 * matrices}  # the first step of the warm-up is zero
    assert watch.ranks[1:] == sorted(watch.ranks[1:], reverse=True)
    assert set(watch.ranks[last - 1 :]) == {2 * matrices}
    assert len(set(watch.ranks)) > 3  # step by step, not at once

    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name[11:]))
    loaded = InfluenceModel.from_pretrained(newest)
    assert sum(loaded.adapter.ranks().values()) == 2 * matrices
    assert len(set(loaded.adapter.ranks().values())) > 1  # some matrices matter more


def test_the_epoch_that_did_best_is_restored_with_the_ranks_it_had(tmp_path):
    adapter = {**ADALORA, "prune_until": 0.9}
    config = config_in(tmp_path, train=TRAIN, model={"adapter": adapter, "dropout": 0.0})
    trainer, watch = trainer_of(config)
    trainer.train()
    per_epoch = trainer.state.max_steps // 4
    model, folder = trainer.influence_model, tmp_path / "run" / "checkpoints"
    best = Path(trainer.state.best_model_checkpoint)
    step = int(best.name.removeprefix("checkpoint-"))
    assert step % per_epoch == 0
    assert sum(model.adapter.ranks().values()) == watch.ranks[step - 1]
    history = [p.item_logits for _, p in model.predict(list(tiny.small_log()))]
    model.save_pretrained(folder / "again")
    loaded = InfluenceModel.from_pretrained(folder / "again")
    again = [p.item_logits for _, p in loaded.predict(list(tiny.small_log()))]
    torch.testing.assert_close(torch.cat(again), torch.cat(history), rtol=0, atol=1e-6)


def test_a_run_too_short_for_the_schedule_is_refused(tmp_path):
    train = {"epochs": 1, "batch_size": 16}  # one step
    trainer, _ = trainer_of(config_in(tmp_path, train=train, model={"adapter": ADALORA}))
    with pytest.raises(
        ConfigError, match=r"1 steps in all: adalora would prune from step 0 to step 1"
    ):
        trainer.train()


def test_the_penalty_is_added_once_a_step_however_it_is_cut(log):
    adapter = {**ADALORA, "dropout": 0.0}
    sections = {"backbone": tiny.backbone_folder("bert"), "adapter": adapter, "dropout": 0.0}
    model = InfluenceModel.build(tiny.run_config(model=sections), log)
    windows, collate = WindowDataset(log, model.encoder), WindowCollator(log, model.encoder)
    objective = NextEventObjective(model)
    whole = collate([windows[n] for n in range(6)])
    count = int((whole["labels"] != -100).sum())
    parts = [collate([windows[n] for n in chosen]) for chosen in ((0, 1, 2, 3), (4, 5))]
    cut = sum(objective(**part, num_items_in_batch=count)["loss"] for part in parts)
    with_penalty = objective(**whole)["loss"]
    torch.testing.assert_close(cut, with_penalty, rtol=0, atol=1e-5)
    state = model.body.state_dict()
    factors = [
        t if "lora_A" in n else t.T for n, t in state.items() if "lora_A" in n or "lora_B" in n
    ]
    expected = torch.stack([(f @ f.T - torch.eye(4)).norm() for f in factors]).mean()
    model.adapter.config = model.adapter.config.model_copy(update={"orthogonality": 0.0})
    without = objective(**whole)["loss"]
    torch.testing.assert_close(with_penalty - without, 0.1 * expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [ADALORA, {"kind": "bottleneck", "width": 4}, {"kind": "full"}],
    ids=lambda a: a["kind"],
)
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch, adapter):
    """AdaLoRA in the middle of pruning; dropout is on."""
    model, configs = {"adapter": adapter, "dropout": 0.2}, []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        configs.append(config_in(tmp_path / name, train=TRAIN, model=model))
    unbroken = finetune(configs[0])

    class Breaking(module.InfluenceTrainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.add_callback(Watch(self.influence_model.adapter, break_after=7))

    monkeypatch.setattr(Watch, "on_step_end", TrainerCallback.on_step_end)
    with monkeypatch.context() as patch:
        patch.setattr(module, "InfluenceTrainer", Breaking)
        with pytest.raises(InterruptedError):
            finetune(configs[1])
    resumed = finetune(configs[1], resume=True)
    assert resumed.test == pytest.approx(unbroken.test)
    newest = max((unbroken.folder / "checkpoints").iterdir(), key=lambda p: int(p.name[11:]))
    same = resumed.folder / "checkpoints" / newest.name
    assert largest_difference(state_of(newest), state_of(same)) < 1e-6
    assert largest_difference(state_of(unbroken.folder), state_of(resumed.folder)) < 1e-6
