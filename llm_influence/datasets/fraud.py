"""A generated log of bank accounts, some taken over: which events raised the alarm is known.

Nothing here is real: no bank, customer or payment. Accounts log in, pay, transfer to payees they
know, and now and then use a new device, pay a small sum online or change their password, as
anybody does. An *alarm* is a large transfer to a new payee. The law that labels it:

    fraud if, within the window before it, there are a login from a new device, at least so many
    small online payments (two) and a change of password.

Most other alarms are near misses: one event too few of these lies in their window. All kinds of
event stand in innocent histories too, and ordinary events stand between the planted ones and after
them, so that neither the kind of an event nor its being recent alone tells what raised the alarm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.config.synthetic import PlantedFraudConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.types import BoolArray, History, IntArray
from llm_influence.utils import write_text, write_whole

SOURCE = "planted_fraud"
"""The name under which a configuration asks for this log."""

NEW_DEVICE, TEST, PASSWORD, ORDINARY = 0, 1, 2, 3
"""Kinds of event, as the law sees them."""

FIRST_TIME = 1_735_689_600  # 2025-01-01
DAY, HOUR = 86_400, 3_600

ITEMS = {
    "device_known": "Known device",
    "device_new": "Device never seen before",
    "password": "Password",
    "payee_known": "Payee of earlier transfers",
    "payee_new": "Payee never paid before",
    "shop_online": "Online shop",
    "shop_groceries": "Groceries",
    "shop_fuel": "Fuel station",
    "shop_restaurant": "Restaurant",
    "shop_clothes": "Clothes shop",
    "shop_travel": "Travel agency",
    "bill_power": "Power bill",
    "bill_phone": "Phone bill",
}
BEHAVIORS = ("login", "payment", "password_change", "transfer", "large_transfer")
ALARM, ALARM_ITEM = "large_transfer", "payee_new"
"""Behaviour and item of every alarm."""
SMALL = (1.0, 2.0)
"""Dollars of a small payment: what a thief tries a card with, and what a song costs."""
AMOUNTS = (5.0, 10.0, 20.0, 40.0, 80.0, 150.0)
LARGE = (1500.0, 2500.0, 4000.0)

_CODES = {name: code for code, name in enumerate(ITEMS)}
_LOGIN, _PAYMENT, _CHANGE, _TRANSFER, _ALARM = range(len(BEHAVIORS))
_LOGINS, _TRANSFERS = 0.35, 0.1
"""Shares of ordinary events; the rest are payments."""
_SHOPS = [code for name, code in _CODES.items() if name.startswith(("shop", "bill"))]

T = TypeVar("T")
Event = tuple[int, int, int, float]
"""Time, behaviour code, item code, dollars (nan where nothing is paid)."""


@dataclass(frozen=True, eq=False)
class FraudTruth:
    """What raised each alarm of a log.

    Attributes:
        log: The generated log.
        window: Seconds before an alarm that the law looks at.
        tests: Small payments that it asks for.
    """

    log: BehaviorLog
    window: int
    tests: int

    @cached_property
    def alarms(self) -> IntArray:
        """(A,) places of all alarms in the log's arrays."""
        return np.flatnonzero(self.log.behaviors == _ALARM)

    @cached_property
    def is_fraud(self) -> BoolArray:
        """(A,) which of them the law calls fraud."""
        return np.array([self.causes(*self.before(event)).any() for event in self.alarms])

    def before(self, event: int) -> tuple[History, int]:
        """The history before the event at this place of the log's arrays, and its moment."""
        user = int(np.searchsorted(self.log.offsets, event, side="right")) - 1
        stop = event - int(self.log.offsets[user])
        return self.log.at(user, stop), int(self.log.timestamps[event])

    def causes(self, history: History, moment: int) -> BoolArray:
        """(E,) which events raised an alarm at ``moment``: the risky ones in the window before it.

        None where the law sees no fraud. Item ids and behaviour names are read, so that histories
        of any log with these names will do.

        Args:
            history: The events before the alarm, or the latest of them.
            moment: Unix seconds.
        """
        kinds = np.where(history.timestamps >= moment - self.window, _kinds(history), ORDINARY)
        counts = np.bincount(kinds, minlength=ORDINARY)
        enough = counts[NEW_DEVICE] and counts[PASSWORD] and counts[TEST] >= self.tests
        return (kinds != ORDINARY) & bool(enough)

    def to_table(self) -> pa.Table:
        """One row an event before an alarm: user_id, alarm, label, position, is_cause.

        ``alarm`` and ``position`` count the user's events from 0.
        """
        parts = []
        for event, fraud in zip(self.alarms, self.is_fraud, strict=True):
            history, moment = self.before(event)
            count = len(history)
            parts.append(
                pa.table(
                    {
                        "user_id": pa.array([history.user_id] * count, pa.string()),
                        "alarm": np.full(count, count),
                        "label": np.full(count, int(fraud)),
                        "position": np.arange(count),
                        "is_cause": self.causes(history, moment),
                    }
                )
            )
        return pa.concat_tables(parts)


def generate(config: PlantedFraudConfig | None = None) -> tuple[BehaviorLog, FraudTruth]:
    """Make a log and its truth; the same configuration gives the same.

    The label of every alarm (1 fraud, 0 not) is the log's `label`, which no history shows.
    """
    config = config or PlantedFraudConfig()
    random = np.random.default_rng(config.seed)
    accounts = [_account(config, random) for _ in range(config.accounts)]
    events = [event for account in accounts for event in account]
    lengths = np.array([len(account) for account in accounts])
    width = len(str(config.accounts - 1))
    table = pa.table({"item_id": list(ITEMS), "title": list(ITEMS.values())})
    times, behaviors, items, values = (np.array(column) for column in zip(*events, strict=True))
    log = BehaviorLog.from_arrays(
        user_ids=[f"a{number:0{width}}" for number in range(config.accounts)],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items,
        timestamps=times,
        catalogue=Catalogue.from_table(table),
        behaviors=behaviors,
        behavior_names=BEHAVIORS,
        values=values,
    )
    truth = FraudTruth(log, round(config.window_hours * HOUR), config.tests)
    labels = np.full(log.num_events, np.nan, dtype=np.float32)
    labels[truth.alarms] = truth.is_fraud
    log = replace(log, labels=labels)
    return log, replace(truth, log=log)


def generated_log() -> BehaviorLog:
    """The log that ``data.source: planted_fraud`` names."""
    return generate()[0]


def write_planted_fraud(config: PlantedFraudConfig, folder: Path) -> tuple[BehaviorLog, FraudTruth]:
    """`generate`, and write all of it.

    ``events.parquet`` and ``items.parquet`` are a log like any other, ``truth.parquet`` says which
    events raised each alarm (`FraudTruth.to_table`), ``law.json`` the law and that all is made up.

    Raises:
        OutputError: The folder cannot be written.
    """
    log, truth = generate(config)
    tables = {"events": log.to_table(), "items": log.catalogue.table, "truth": truth.to_table()}
    for name, table in tables.items():
        write_whole(folder / f"{name}.parquet", partial(pq.write_table, table))
    described = {
        "generated": "no bank, customer or payment is real",
        "law": f"an alarm (behaviour {ALARM}) is fraud if within the window before "
        f"it there are a login from device_new, at least {truth.tests} payments at shop_online of "
        f"at most {max(SMALL):g} and a password_change",
        "window_seconds": truth.window,
        "config": config.model_dump(mode="json"),
    }
    write_text(folder / "law.json", json.dumps(described, indent=2) + "\n")
    return log, truth


def _kinds(history: History) -> IntArray:
    """(E,) what each event is to the law."""
    names = history.code_names.behaviors
    did = np.array([names[code] for code in history.behaviors])
    item = np.array(history.item_ids())
    small = (item == "shop_online") & (did == "payment") & (history.values <= max(SMALL))
    kinds = np.full(len(history), ORDINARY)
    kinds[small] = TEST
    kinds[(item == "device_new") & (did == "login")] = NEW_DEVICE
    kinds[did == "password_change"] = PASSWORD
    return kinds


def _account(config: PlantedFraudConfig, random: np.random.Generator) -> list[Event]:
    """All events of an account in time order."""
    start = FIRST_TIME + int(random.integers(0, DAY))
    window, slot = config.window_hours * HOUR, config.days * DAY / config.alarms
    count = int(random.integers(1, config.alarms + 1))
    slots = np.sort(random.choice(config.alarms, size=count, replace=False))
    moments = [start + slot * s + random.uniform(window + DAY / 2, slot) for s in slots]
    around = [event for moment in moments for event in _alarm(config, round(moment), random)]
    quiet = random.poisson(config.events_a_week * config.days / 7)
    for time in start + random.uniform(0, config.days * DAY, size=quiet):
        watched = any(moment - window <= time <= moment for moment in moments)
        innocent = not watched and random.random() < config.innocent_share
        around.append(
            _risky(int(random.integers(ORDINARY)), round(time), random)
            if innocent
            else _ordinary(round(time), random)
        )
    return sorted(around)


def _alarm(config: PlantedFraudConfig, moment: int, random: np.random.Generator) -> list[Event]:
    """An alarm and all that lies in its window."""
    first = moment - int(config.window_hours * HOUR) + 1
    rows = _planted(config, random)
    when = np.sort(random.integers(first, moment, size=len(rows)))
    found = [_risky(kind, int(time), random) for kind, time in zip(rows, when, strict=True)]
    busy = random.integers(first, moment, size=random.poisson(config.busy))
    found += [_ordinary(int(time), random) for time in busy]
    return [*found, (moment, _ALARM, _CODES[ALARM_ITEM], _drawn(LARGE, random))]


def _planted(config: PlantedFraudConfig, random: np.random.Generator) -> list[int]:
    """Kinds of the risky events of an alarm, in their order: a takeover, a near miss, or none."""
    takeover = [NEW_DEVICE, *[TEST] * config.tests, PASSWORD]
    if random.random() < config.fraud_share:
        return takeover
    if random.random() >= config.near_miss_share:
        return []
    missing = int(random.integers(len(takeover)))
    return takeover[:missing] + takeover[missing + 1 :]


def _risky(kind: int, time: int, random: np.random.Generator) -> Event:
    if kind == NEW_DEVICE:
        return (time, _LOGIN, _CODES["device_new"], np.nan)
    if kind == PASSWORD:
        return (time, _CHANGE, _CODES["password"], np.nan)
    return (time, _PAYMENT, _CODES["shop_online"], _drawn(SMALL, random))


def _ordinary(time: int, random: np.random.Generator) -> Event:
    draw = random.random()
    if draw < _LOGINS:
        return (time, _LOGIN, _CODES["device_known"], np.nan)
    if draw < _LOGINS + _TRANSFERS:
        return (time, _TRANSFER, _CODES["payee_known"], _drawn(AMOUNTS, random))
    return (time, _PAYMENT, _drawn(_SHOPS, random), _drawn(AMOUNTS, random))


def _drawn(values: Sequence[T], random: np.random.Generator) -> T:
    return values[int(random.integers(len(values)))]
