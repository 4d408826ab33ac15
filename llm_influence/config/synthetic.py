"""Configurations of generated logs with known truth."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.document import Document, Section


class DriftConfig(Section):
    """A date from which the data-generating process has other behaviour weights."""

    date: datetime.date = Field(
        description="First day of the change, UTC. Generated logs begin on 2025-06-15."
    )
    behaviors: dict[str, float] = Field(
        description="Weights from that day on, for the same behaviours as before."
    )


class PlantedConfig(Document):
    """A generated log whose data-generating process, and so the truth, is known."""

    users: int = Field(2000, ge=1, description="Number of generated users.")
    items: int = Field(40, ge=2, description="Number of items that belong to a cluster.")
    min_events: int = Field(
        8,
        ge=3,
        description="Smallest number of events of a user; the last event is the one to predict.",
    )
    max_events: int = Field(13, ge=3, description="Largest number of events of a user.")
    behaviors: dict[str, float] = Field(
        {"purchase": 1.0, "click": 0.5, "dismiss": -0.5},
        description="Weight of an event by behaviour: above 0 it speaks for similar items, below 0 "
        "against them.",
    )
    half_life: float = Field(
        6 * 3600.0,
        gt=0,
        description="Half-life of an event's weight, in units of the clock (seconds or steps).",
    )
    clock: Literal["seconds", "steps"] = Field(
        "seconds", description="Unit of an event's age: seconds, or events since then."
    )
    clusters: int = Field(5, ge=2, le=12, description="Number of clusters of similar items.")
    rank: int | None = Field(
        None,
        ge=1,
        description="Rank of the item affinities; below the number of clusters, clusters support "
        "and oppose each other. null: the number of clusters.",
    )
    spread: float = Field(
        0.0, ge=0, description="Distance of items from the centre of their cluster."
    )
    distractor_share: float = Field(
        0.2, ge=0, lt=1, description="Share of the events that have a behaviour of weight 0."
    )
    distractor_items: int = Field(
        0, ge=0, description="Number of additional items without affinity to any item."
    )
    pair_strength: float = Field(
        0.0, description="Strength of interactions of two events. 0: effects of events add up."
    )
    temperature: float = Field(
        1.0, gt=0, description="Temperature of the softmax over items; higher means more noise."
    )
    session_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the events that follow the event before within seconds.",
    )
    gap_hours: float = Field(4.0, gt=0, description="Median number of hours between sessions.")
    gap_spread: float = Field(
        0.8, ge=0, description="Standard deviation of the logarithm of these hours."
    )
    exposure_spread: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of the logarithm of the items' exposures, independent of "
        "affinity. A user takes an item in proportion to affinity times exposure. 0: equal.",
    )
    drift: DriftConfig | None = Field(
        None, description="A change of the behaviour weights. null: no change."
    )
    target: Literal["contrast", "item"] = Field(
        "contrast",
        description="What the true influence explains: the log-odds of the best item over the best "
        "item of another cluster, or of the best item alone.",
    )
    cause_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="An event is a true cause from this share of the history's largest influence.",
    )
    group_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the users in group b of the user feature group. 0: no such feature.",
    )
    group_shift: float = Field(
        0.0,
        description="Number added to the scores of the first cluster's items for group b: an "
        "unfair process.",
    )
    group_taste: float = Field(
        0.0,
        description="The same number for events of the history alone: groups behave differently, "
        "and the process is fair.",
    )
    seed: int = Field(0, ge=0, description="Seed of the process and of the users.")
    user_seed: int = Field(0, ge=0, description="Seed of other users of the same process.")

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
    """A generated log of bank accounts, some of them taken over.

    An alarm is a large transfer to a new payee. It is fraud if a login from a new device, ``tests``
    small online payments and a password change all lie within ``window_hours`` before it. A near
    miss lacks one of these events and is no fraud.
    """

    accounts: int = Field(1600, ge=10, description="Number of generated accounts.")
    days: int = Field(60, ge=10, description="Number of days of an account's history.")
    events_a_week: float = Field(
        1.2, gt=0, description="Average number of events of an account in a week, without alarms."
    )
    innocent_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of these events that look suspicious and are innocent: new devices, "
        "small payments, password changes.",
    )
    alarms: int = Field(3, ge=1, description="Largest number of alarms of an account, at least 1.")
    fraud_share: float = Field(0.4, gt=0, lt=1, description="Share of the alarms that are fraud.")
    near_miss_share: float = Field(
        0.8, ge=0, le=1, description="Share of the other alarms that are near misses."
    )
    window_hours: float = Field(
        48.0, gt=1, description="Number of hours before an alarm in which all signs must lie."
    )
    tests: int = Field(2, ge=1, description="Number of small payments that a fraud needs.")
    busy: float = Field(
        4, ge=0, description="Average number of ordinary events in the window of an alarm."
    )
    seed: int = Field(0, ge=0, description="Seed of all random draws.")

    @model_validator(mode="after")
    def _has_room(self) -> PlantedFraudConfig:
        needed = self.alarms * (self.window_hours / 24 + 1)
        if self.days < needed:
            raise ValueError(
                f"at least {needed:g} days: {self.alarms} alarms with a window of "
                f"{self.window_hours:g} hours and a day each"
            )
        return self
