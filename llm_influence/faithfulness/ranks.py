"""The target's place among its alternatives, as another value of a set of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_influence.attribution.targets import BoundTarget
from llm_influence.evaluation.ranking import seen_items, target_ranks
from llm_influence.modeling.model import InfluenceModel, Prediction
from llm_influence.types import History


@dataclass(frozen=True, slots=True, eq=False)
class RankTarget(BoundTarget):
    """Rank of a bound target, 1 is best.

    An item stands among the items that the whole history does not hold: these candidates stay the
    same while events are removed, so a rank can change through the model alone. A behaviour
    stands among all behaviours; a contrast or feedback ranks 1 while it is above its middle (zero,
    or the mean label of a regression), else 2; of a slate the first item's rank is taken.

    Attributes:
        held: (N, S) items of the whole histories, -1 where a row has fewer.
    """

    held: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def values(self, prediction: Prediction, rows: Tensor) -> Tensor:
        """(B,) ranks for predictions made for the histories numbered ``rows`` (B,)."""
        if self.kind in ("contrast", "feedback", "feedback_value"):
            return 2 - (BoundTarget.values(self, prediction, rows) > self.middle).long()
        codes, held = self.codes[rows], self.held[rows]
        if self.kind == "behavior":
            return target_ranks(prediction.behavior_logits.cpu(), codes)
        # A target that the history already holds (a named item) is no candidate and still ranks.
        held = held.masked_fill(held == codes[:, None], -1)
        return target_ranks(prediction.item_logits.cpu(), codes, held)


def rank_target(
    target: BoundTarget, model: InfluenceModel, histories: Sequence[History]
) -> RankTarget:
    """The rank of ``target``, bound to the same whole histories."""
    codes = target.codes.cpu()
    return RankTarget(
        kind=target.kind,
        codes=codes if codes.ndim == 1 else codes[:, 0],
        other=target.other,
        ids=target.ids,
        names=target.names,
        behaviors=target.behaviors,
        middle=target.middle,
        held=seen_items([model.encoder.lexicon.item_codes(history) for history in histories]),
    )
