"""Models and games whose influence is known without explaining it."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.types import Event, History
from tests import tiny


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
        for parameter in (model.units.residual, model.item_head.project.weight):
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


class GameValues:
    """What a method asks of a value function, answered by games instead of a model."""

    def __init__(self, games: Sequence[Game], sizes: Sequence[int]) -> None:
        self._games, self._sizes = games, sizes
        self._known: list[set[bytes]] = [set() for _ in games]

    @property
    def evaluations(self) -> np.ndarray:
        return np.array([len(known) for known in self._known])

    def __call__(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        for known, asked in zip(self._known, masks, strict=True):
            known.update(mask.tobytes() for mask in asked)
        return [game(mask) for game, mask in zip(self._games, masks, strict=True)]

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        masks = [np.stack([np.zeros(n, bool), np.ones(n, bool)]) for n in self._sizes]
        both = np.array(self(masks))
        return both[:, 0], both[:, 1]


def game_task(
    games: Sequence[Game],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    users: Sequence[str] | None = None,
) -> SimpleNamespace:
    """A task of games; a player is whatever the game takes it for."""
    names = users or [f"u{n}" for n in range(len(games))]
    return SimpleNamespace(
        histories=[SimpleNamespace(user_id=name) for name in names],
        sizes=list(sizes),
        values=GameValues(games, sizes),
        seed=seed,
    )
