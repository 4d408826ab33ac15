"""A generated log of bank accounts, some of them taken over."""

from __future__ import annotations

from pydantic import Field, model_validator

from llm_influence.config.document import Document


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
