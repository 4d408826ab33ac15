"""Models and games whose influence is known without explaining it."""

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.registry import Task, user_generator
from llm_influence.attribution.target import Item, bind
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.types import Event, History
from tests import tiny

FAST = (("bert", "token"), ("llama", "text"), ("recurrence", "token"))
"""Kinds of models and rendering styles that `make test` runs."""

model_of = functools.cache(tiny.tiny_model)
"""One tiny model of each kind and style for all tests of the room."""


class BagModel(InfluenceModel):
    """The state is the sum of the visible tokens' vectors, so logits are linear in the events."""

    def attend(self, batch: EncodedBatch, vectors: Tensor, **options: object) -> SimpleNamespace:
        visible = vectors * batch.attention_mask[..., None]
        return SimpleNamespace(last_hidden_state=visible.cumsum(dim=1))


def bag_model(template: str = "item") -> BagModel:
    config = tiny.run_config(
        rendering={"template": template}, model={"item_head": {"score": "dot"}}
    )
    model = BagModel.build(config, tiny.small_log())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (model.embeddings.residual, model.item_head.project.weight):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def weights(model: BagModel, history: History, chosen: str, other: str) -> list[float]:
    """What each event of a one-token-an-event history adds to ``logit(chosen) - logit(other)``."""
    with torch.no_grad():
        items = model.item_vectors()
        a, b = model.catalogue.index([chosen, other])
        direction = (items[a] - items[b]) @ model.item_head.project.weight
        codes = torch.from_numpy(model.encoder.vocabulary.item_codes(history)).long()
        return (items[codes] @ direction).tolist()


def typed(*items: str, step: int = 3600) -> History:
    return History.from_events(
        "typed", [Event(item, "click", n * step) for n, item in enumerate(items)]
    )


Game = Callable[[np.ndarray], np.ndarray]
"""(M, n) coalitions in, (M,) values out."""


def game_task(
    games: Sequence[Game],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    users: Sequence[str] | None = None,
) -> "GameTask":
    """Games as a task: what a perturbation method needs of one."""
    names = users or [f"u{n}" for n in range(len(games))]
    return GameTask(games, list(sizes), seed, names)


class GameTask:
    """N games, as the task of a perturbation method and as the values of its coalitions."""

    def __init__(
        self, games: Sequence[Game], sizes: list[int], seed: int, users: Sequence[str]
    ) -> None:
        self._games, self.sizes, self._seed, self._users = games, sizes, seed, users
        self._known: list[set[bytes]] = [set() for _ in games]

    @property
    def values(self) -> "GameTask":
        return self

    @property
    def evaluations(self) -> np.ndarray:
        return np.array([len(known) for known in self._known])

    def __call__(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        for known, requested in zip(self._known, masks, strict=True):
            known.update(mask.tobytes() for mask in requested)
        return [game(mask) for game, mask in zip(self._games, masks, strict=True)]

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        masks = [np.stack([np.zeros(n, bool), np.ones(n, bool)]) for n in self.sizes]
        both = np.array(self(masks))
        return both[:, 0], both[:, 1]

    def generators(self) -> list[np.random.Generator]:
        return [user_generator(self._seed, user) for user in self._users]

    def label(self, row: int) -> str:
        return f"user {self._users[row]!r}"


TARGET = Item("i7")


def read(model, history):
    batch = collate(model.encoder.encode([history]))
    with torch.no_grad():
        return batch, model.embed(batch)


def a_task(model, histories, target=TARGET, seed=0):
    return Task(model, histories, bind(target, model, histories), "drop", seed)


def run_method(method, model, log, rows=(0, 3, 7), seed=0, **options):
    """The attribution of some histories, with all that no record keeps."""
    histories = [model.encoder.trim(log.at(row)) for row in rows]
    return METHODS[method](**options).run(a_task(model, histories, seed=seed))


def log_odds_of_i7(model, batch, vectors):
    code = torch.tensor([int(model.catalogue.index(["i7"])[0])])
    with torch.no_grad():
        return float(log_odds(model(batch, vectors).item_logits, code))
