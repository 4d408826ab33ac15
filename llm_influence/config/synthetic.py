"""Generated logs with known truth.

A log made by a known law.

A generated log of bank accounts, some of them taken over.
"""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.document import Document, Section


class DriftConfig(Section):
    """A change of the law: what behaviours count in predictions from a date on."""

    date: datetime.date = Field(description="its first moment, UTC; logs begin on 2025-06-15")
    behaviors: dict[str, float] = Field(description="weights from then on, of the same behaviours")


class PlantedConfig(Document):
    """A log made by a known law (`llm_influence.data.planted`); what makes it easy or hard.

    ``behaviors`` are weights: what an event counts, positive for and negative against the items
    like its own. Distractors count for nothing: a share of all events has a behaviour of weight
    zero, and ``distractor_items`` have no affinity to any item.

    With ``group_share`` users have a feature ``group``, a or b. By itself it means nothing;
    ``group_shift`` makes the law unfair, ``group_taste`` makes the groups do different things
    under a law that does not know of them.
    """

    users: int = Field(2000, ge=1)
    items: int = Field(40, ge=2, description="of the clusters")
    min_events: int = Field(8, ge=3, description="of a user; the last one is what came next")
    max_events: int = Field(13, ge=3)
    behaviors: dict[str, float] = Field({"purchase": 1.0, "click": 0.5, "dismiss": -0.5})
    half_life: float = Field(6 * 3600.0, gt=0, description="in units of the clock")
    clock: Literal["seconds", "steps"] = "seconds"
    clusters: int = Field(5, ge=2, le=12)
    rank: int | None = Field(
        None,
        ge=1,
        description="of the affinity; below clusters these oppose and support each other",
    )
    spread: float = Field(0.0, ge=0, description="how far items lie from their cluster's centre")
    distractor_share: float = Field(0.2, ge=0, lt=1, description="of events")
    distractor_items: int = Field(0, ge=0)
    pair_strength: float = Field(0.0, description="of two events together beyond each alone")
    temperature: float = Field(1.0, gt=0, description="higher: the law is harder to see")
    session_share: float = Field(0.5, ge=0, lt=1, description="of events seconds after the last")
    gap_hours: float = Field(4.0, gt=0, description="median time between sessions")
    gap_spread: float = Field(0.8, ge=0, description="of its logarithm")
    exposure_spread: float = Field(
        0.0,
        ge=0,
        description="of the logarithm of how often items are shown, whatever their affinity; a "
        "user takes an item by affinity times exposure",
    )
    drift: DriftConfig | None = None
    target: Literal["contrast", "item"] = Field(
        "contrast", description="contrast: the best item over the best of another cluster"
    )
    cause_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="of a history's largest influence, from which on one is a cause",
    )
    group_share: float = Field(0.0, ge=0, lt=1, description="of users in group b; 0: no feature")
    group_shift: float = Field(
        0.0, description="added to the scores of the first cluster's items for group b"
    )
    group_taste: float = Field(
        0.0, description="the same for what group b does before, but not for what comes next"
    )
    seed: int = Field(0, ge=0, description="of the law and the users")
    user_seed: int = Field(0, ge=0, description="other users under the same law")

    @model_validator(mode="after")
    def _fits_together(self) -> PlantedConfig:
        if self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} not below min_events")
        if self.items < self.clusters:
            raise ValueError(f"at least one item for each of {self.clusters} clusters")
        if not any(self.behaviors.values()):
            raise ValueError("at least one behaviour whose weight is not zero")
        if (self.group_shift or self.group_taste) and not self.group_share:
            raise ValueError("group_share above 0: without it no user is of group b")
        if "impression" in self.behaviors:
            raise ValueError("another name than 'impression', which is the distractors'")
        if self.drift is not None and set(self.drift.behaviors) != set(self.behaviors):
            raise ValueError(f"drift.behaviors of the names {sorted(self.behaviors)}")
        return self


class PlantedFraudConfig(Document):
    """A generated log of accounts with planted takeovers (`llm_influence.data.planted_fraud`).

    An alarm is a large transfer to a new payee. It is fraud where a new device, ``tests`` small
    online payments and a change of password all lie within ``window_hours`` before it. A near miss
    has one event too few of these, and is no fraud.
    """

    accounts: int = Field(1600, ge=10)
    days: int = Field(60, ge=10, description="that an account is watched")
    events_a_week: float = Field(1.2, gt=0, description="of an account, outside of alarms")
    innocent_share: float = Field(
        0.2, ge=0, lt=1, description="of these: new devices, small payments, password changes"
    )
    alarms: int = Field(3, ge=1, description="of an account, at most; at least one")
    fraud_share: float = Field(0.4, gt=0, lt=1, description="of alarms")
    near_miss_share: float = Field(0.8, ge=0, le=1, description="of alarms that are no fraud")
    window_hours: float = Field(48.0, gt=1)
    tests: int = Field(2, ge=1, description="small payments of a takeover")
    busy: float = Field(4, ge=0, description="ordinary events in an alarm's window, on average")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_room(self) -> PlantedFraudConfig:
        needed = self.alarms * (self.window_hours / 24 + 1)
        if self.days < needed:
            raise ValueError(
                f"at least {needed:g} days: {self.alarms} alarms with a window of "
                f"{self.window_hours:g} hours and a day each"
            )
        return self
