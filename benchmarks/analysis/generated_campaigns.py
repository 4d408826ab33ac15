"""Generated campaign logs with a known effect of each channel on every conversion.

People meet four channels, open product pages, and visit the shop once; the visit's label says
whether they bought. The log-odds of that are

    base + sum over channels of worth_c (1 - exp(-sum over touches of 2^(-age / HALF_LIFE)))
         + INTEREST times their interest,

so a further touch of a channel adds less than the first. Interest also brings them to search ads
shortly before the visit: search is met by those who would have bought anyway and adds nearly
nothing. In the world `seen` interest works through the product pages in the log; in the world
`hidden` pages are independent of it, and no reader of the log can know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.special import expit

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.types import FloatArray, IntArray

World = Literal["seen", "hidden"]
WORTH = {"email": 2.4, "display": 1.6, "social": 0.6, "search": 0.2}
BASE = {"seen": -4.2, "hidden": -2.9}
INTEREST = {"seen": 0.6, "hidden": 1.1}
"""Of a product page, or of a standard deviation of interest."""
HALF_LIFE = 10.0
DAYS = 30.0
FIRST_TIME = 1_750_000_000
PAGE, VISIT = "product page", "shop"


@dataclass(frozen=True, eq=False)
class Campaigns:
    """A generated log and its truth, of U users.

    Attributes:
        log: Events ``see`` (an ad), ``open`` (a page) and, last of each user, ``visit``, labelled.
        channels: (C,) names.
        logits: (U,) log-odds of buying.
        added: (U, C) what each channel adds to them.
    """

    log: BehaviorLog
    channels: tuple[str, ...]
    logits: FloatArray
    added: FloatArray

    def removal_effects(self) -> FloatArray:
        """(C,) share of the expected conversions that are lost if a channel is never met."""
        chance = expit(self.logits)
        without = expit(self.logits[:, None] - self.added)
        effects: FloatArray = 1 - without.sum(axis=0) / chance.sum()
        return effects


def generate(world: World, users: int, seed: int) -> Campaigns:
    """Make a log; the same arguments give the same."""
    random = np.random.default_rng([seed, users, world == "hidden"])
    interest = random.normal(size=users)
    worth = np.array(list(WORTH.values()))
    counts = np.column_stack(
        [
            random.poisson(1.2, users),
            random.poisson(1.5, users),
            random.poisson(1.2, users),
            random.poisson(np.exp(-0.7 + 0.9 * interest)),
            1 + random.poisson(np.exp(0.2 + 0.7 * interest * (world == "seen"))),
        ]
    ).clip(0, 8)
    ages = [random.uniform(*_span(name), counts[:, n].sum()) for n, name in enumerate(_NAMES)]
    owners = [np.repeat(np.arange(users), counts[:, n]) for n in range(len(_NAMES))]
    decayed = np.column_stack(
        [
            np.bincount(owners[n], weights=0.5 ** (ages[n] / HALF_LIFE), minlength=users)
            for n in range(len(WORTH))
        ]
    )
    added = worth * -np.expm1(-decayed)
    pull = counts[:, -1] if world == "seen" else interest
    logits = BASE[world] + added.sum(axis=1) + INTEREST[world] * pull
    bought = random.random(users) < expit(logits)
    return Campaigns(_log(users, owners, ages, bought), tuple(WORTH), logits, added)


_NAMES = (*WORTH, PAGE)


def _span(name: str) -> tuple[float, float]:
    """Days before the visit, at least and at most."""
    return {"search": (0.05, 3.0), "display": (0.4 * DAYS, DAYS)}.get(name, (0.05, DAYS))


def _log(
    users: int, owners: list[IntArray], ages: list[FloatArray], bought: np.ndarray
) -> BehaviorLog:
    user = np.concatenate([*owners, np.arange(users)])
    kind = np.repeat(np.arange(len(_NAMES) + 1), [*map(len, owners), users])
    age = np.concatenate([*ages, np.zeros(users)])
    label = np.full(len(user), np.nan)
    label[kind == len(_NAMES)] = bought
    behaviors = np.array(["see"] * len(WORTH) + ["open", "visit"])
    names = [*(f"{name} ad" for name in WORTH), PAGE, VISIT]
    items = pa.table(
        {
            "item_id": names,
            "title": names,
            "channel": pa.array([*WORTH, None, None], pa.string()),
        }
    )
    events = pa.table(
        {
            "user_id": [f"u{number:06}" for number in user],
            "item_id": [names[code] for code in kind],
            "timestamp": (FIRST_TIME - 86_400 * age).astype(np.int64),
            "behavior": behaviors[kind],
            "label": pa.array(label, from_pandas=True),
        }
    )
    return BehaviorLog.read(
        events, items=Catalogue.from_table(items), timezone="UTC", duplicates="keep"
    )
