"""A generated log of bank accounts, some taken over, with the events that caused each alarm.

Nothing here is real: no bank, customer or payment. Accounts log in, pay, and transfer to known
payees. Now and then they use a new device, pay a small sum online or change their password. An
*alarm* is a large transfer to a new payee. The rule that labels it:

    fraud if the window before it holds a login from a new device, at least ``tests`` (two) small
    online payments, and a change of password.

Most other alarms are near misses: their window lacks one of these events. Every kind of event also
occurs in innocent histories, and ordinary events stand between and after the planted ones. So
neither the kind of an event nor its recency alone gives the cause away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from llm_influence.config.data import PlantedFraudConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.planted import write_generated
from llm_influence.types import BoolArray, History, IntArray

NEW_DEVICE, TEST, PASSWORD, ORDINARY = 0, 1, 2, 3
"""Kinds of event in the rule."""

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
"""Dollars of a small payment."""
AMOUNTS = (5.0, 10.0, 20.0, 40.0, 80.0, 150.0)
LARGE = (1500.0, 2500.0, 4000.0)

_CODES = {name: code for code, name in enumerate(ITEMS)}
_LOGIN, _PAYMENT, _CHANGE, _TRANSFER, _ALARM = range(len(BEHAVIORS))
_LOGINS, _TRANSFERS = 0.35, 0.1
"""Shares of ordinary events; the rest are payments."""
_SHOPS = [code for name, code in _CODES.items() if name.startswith(("shop", "bill"))]

T = TypeVar("T")
Event = tuple[int, int, int, float]
"""Time, behaviour code, item code, dollars (NaN if nothing is paid)."""


@dataclass(frozen=True, eq=False)
class FraudTruth:
    """The events that caused each alarm of a log."""

    log: BehaviorLog
    window: int
    """Length of the rule's window before an alarm, seconds."""
    tests: int
    """Number of small payments in the rule."""

    @cached_property
    def alarms(self) -> IntArray:
        """(A,) places of all alarms in the log's arrays."""
        return np.flatnonzero(self.log.behaviors == _ALARM)

    @cached_property
    def is_fraud(self) -> BoolArray:
        """(A,) whether each alarm is fraud."""
        return np.array([self.causes(*self.before(event)).any() for event in self.alarms])

    def before(self, event: int) -> tuple[History, int]:
        """The history before the event at this place of the log's arrays, and the event's time."""
        user = int(np.searchsorted(self.log.offsets, event, side="right")) - 1
        stop = event - int(self.log.offsets[user])
        return self.log.at(user, stop), int(self.log.timestamps[event])

    def causes(self, history: History, moment: int) -> BoolArray:
        """(E,) which events caused an alarm at ``moment``: the risky ones in the window before it.

        All False if the alarm is not fraud. Only item ids and behaviour names are used, so
        histories of any log with these names can be passed, whole or their latest events.
        """
        kinds = np.where(history.timestamps >= moment - self.window, _kinds(history), ORDINARY)
        counts = np.bincount(kinds, minlength=ORDINARY)
        enough = counts[NEW_DEVICE] and counts[PASSWORD] and counts[TEST] >= self.tests
        return (kinds != ORDINARY) & bool(enough)

    def to_table(self) -> pa.Table:
        """One row for each event before an alarm: user_id, alarm, label, position, is_cause.

        ``alarm`` and ``position`` count the user's events from 0.
        """
        parts = []
        for event, fraud in zip(self.alarms, self.is_fraud, strict=True):
            history, moment = self.before(event)
            count = len(history)
            users = pa.array([history.user_id] * count, pa.string())
            columns = {"user_id": users, "alarm": np.full(count, count)}
            columns |= {"label": np.full(count, int(fraud)), "position": np.arange(count)}
            parts.append(pa.table(columns | {"is_cause": self.causes(history, moment)}))
        return pa.concat_tables(parts)


def make_fraud(
    config: PlantedFraudConfig | None = None, *, folder: Path | None = None, **options: object
) -> tuple[BehaviorLog, FraudTruth]:
    """Generate a log and its truth; the same configuration gives the same result.

    The log's `label` is 1 for a fraudulent alarm, 0 for another one, NaN for other events.

    Args:
        config: The configuration; default: `PlantedFraudConfig` with ``options``.
        folder: Folder to write to; default: nothing is written. ``events.parquet`` and
            ``items.parquet`` are an ordinary log, ``truth.parquet`` is `FraudTruth.to_table`,
            ``process.json`` describes the rule.
        options: Options of `PlantedFraudConfig`, in place of ``config``.

    Raises:
        OutputError: The folder cannot be written.
    """
    config = config or PlantedFraudConfig.of(options, "make_fraud")
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
    truth = replace(truth, log=log)
    if folder is not None:
        tables = {"events": log.to_table(), "truth": truth.to_table()}
        write_generated(folder, log, tables, _described(config, truth))
    return log, truth


def _described(config: PlantedFraudConfig, truth: FraudTruth) -> dict[str, object]:
    return {
        "generated": "no bank, customer or payment is real",
        "rule": f"an alarm (behaviour {ALARM}) is fraud if within the window before "
        f"it there are a login from device_new, at least {truth.tests} payments at shop_online of "
        f"at most {max(SMALL):g} and a password_change",
        "window_seconds": truth.window,
        "config": config.model_dump(mode="json"),
    }


def _kinds(history: History) -> IntArray:
    """(E,) kind of each event in the rule."""
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
        if innocent:
            around.append(_risky(int(random.integers(ORDINARY)), round(time), random))
        else:
            around.append(_ordinary(round(time), random))
    return sorted(around)


def _alarm(config: PlantedFraudConfig, moment: int, random: np.random.Generator) -> list[Event]:
    """An alarm and all events in its window."""
    first = moment - int(config.window_hours * HOUR) + 1
    rows = _planted(config, random)
    when = np.sort(random.integers(first, moment, size=len(rows)))
    events = [_risky(kind, int(time), random) for kind, time in zip(rows, when, strict=True)]
    busy = random.integers(first, moment, size=random.poisson(config.busy))
    events += [_ordinary(int(time), random) for time in busy]
    return [*events, (moment, _ALARM, _CODES[ALARM_ITEM], _drawn(LARGE, random))]


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
