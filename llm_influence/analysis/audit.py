"""Do sensitive features of users decide what they get? From influence tables alone.

What the tables can say, by feature: how much influence passes through the users' features and
through behaviour that gives the feature away (`analysis.proxies`), whether groups get something
else, and still do among users with the same history (`analysis.gaps`), and whether the feature
alone changes the recommendation (`analysis.flips`).

The verdict rests on the last two: a gap that the history explains is shown, but is no verdict. Both
tests are corrected for each other (Holm), so that a feature that means nothing is accused with
chance alpha at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llm_influence.analysis.audit_tests import (
    Flips,
    Gaps,
    Proxies,
    find_proxies,
    flips_beside,
    flips_of,
    gaps,
    same_history,
    told_by_history,
)
from llm_influence.analysis.audit_users import AuditUsers, Measure, large_groups
from llm_influence.analysis.output import Analysis, Table, aligned
from llm_influence.analysis.plots import draw_flips, draw_gaps, draw_proxies
from llm_influence.analysis.regression import holm
from llm_influence.analysis.statistics import mean_of
from llm_influence.analysis.tables import InfluenceView
from llm_influence.errors import ConfigError, DataError
from llm_influence.types import FloatArray, IntArray

LEAST_USERS = 20
LEAST_GROUP = 10
EXPECTED = 5
"""What is recommended so rarely that a group could expect fewer users with it is not compared."""
MOST_SHOWN = 15
PREFIX = "user:"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What is asked.

    Attributes:
        sensitive: Columns of the view that should decide nothing: ``user:gender``.
        alpha: Chance of accusing a feature that means nothing.
        tolerated: Share of users whose first recommendation may change with the feature alone.
        shuffles: For every permutation test.
        most_users: Drawn for the tests where there are more.
        seed: Of the shuffles and the drawn users.
    """

    sensitive: tuple[str, ...]
    alpha: float = 0.05
    tolerated: float = 0.05
    shuffles: int = 999
    most_users: int = 20_000
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found of one feature."""

    feature: str
    groups: tuple[str, ...]
    sizes: IntArray
    unknown: int
    measures: list[Measure]
    plain: Gaps
    given: Gaps
    proxies: Proxies
    carried: FloatArray
    through: FloatArray
    told: float
    flips: Flips | None


def analyze_audit(view: InfluenceView, options: AuditOptions) -> Analysis:
    """Audit every sensitive feature.

    Raises:
        DataError: Too few users, no such feature, fewer than two groups of users, or nothing to
            compare them by.
        SchemaError: The flips beside the tables are of another version.
        ConfigError: No feature was named, or an option is out of range.
    """
    _check(options)
    view.require_users(LEAST_USERS, "groups of users are compared")
    users, flipped = AuditUsers(view), flips_beside(view.sources)
    if not users.measures:
        raise DataError(
            "nothing differs between users: " + "; ".join(users.left_out),
            where="influence tables",
            expected="recommendations or predictions that differ",
            fix="explain each user's own recommendation, --target top1",
        )
    found = [_audited(users, name, flipped, options) for name in dict.fromkeys(options.sensitive)]
    verdicts = [_verdict(each, users, options) for each in found]
    compared = [row for each in found for row in _gap_rows(each, options)]
    telling = [row for each in found for row in _proxy_rows(each, options)]
    pairs = [row for each in found if each.flips for row in each.flips.pairs]
    tables = {
        "verdict": Table(verdicts),
        "gaps": Table(compared, draw_gaps(compared)),
        "proxies": Table(telling, draw_proxies(telling, MOST_SHOWN)),
        **({"flips": Table(pairs, draw_flips(pairs))} if pairs else {}),
    }
    facts = {
        "method": view.method,
        "units": view.units,
        "events": view.events,
        "explanations": view.explanations,
        "users": view.users,
        "options": asdict(options),
        "left_out": users.left_out,
    }
    return Analysis("audit", facts, tables, _shown(facts, verdicts, compared, telling))


def _check(options: AuditOptions) -> None:
    wrong = [name for name in options.sensitive if not name.startswith(PREFIX)]
    if wrong or not options.sensitive:
        raise ConfigError(
            f"{wrong[0]!r} is no feature of users" if wrong else "no sensitive feature was named",
            where="sensitive features",
            expected="a column of the user table as user:NAME",
            fix="name it as in --sensitive user:gender",
        )
    if not 0 <= options.tolerated < 1 or not 0 < options.alpha < 1 or options.shuffles < 99:
        raise ConfigError(
            f"alpha {options.alpha}, tolerated {options.tolerated}, shuffles {options.shuffles}",
            where="options of the audit",
            expected="alpha and tolerated below 1, and at least 99 shuffles",
            fix="correct the option",
        )


def _audited(
    users: AuditUsers, feature: str, flipped: pa.Table | None, options: AuditOptions
) -> Found:
    levels, codes = users.groups(feature)
    kept = large_groups(feature, levels, codes, LEAST_GROUP)
    members = np.flatnonzero(np.isin(codes, kept))
    if len(members) > options.most_users:
        drawn = np.random.default_rng(options.seed).permutation(members)[: options.most_users]
        members = np.sort(drawn)
        kept = large_groups(feature, levels, codes[members], LEAST_GROUP)
        members = members[np.isin(codes[members], kept)]
    groups = np.searchsorted(kept, codes[members])
    facts = users.facts[members]
    measures = [each for each in users.measures if _common(each, members, groups)]
    if not measures:
        raise DataError(
            f"what is recommended differs for too few of {len(members)} users",
            where=feature,
            expected=f"recommendations of a kind that {EXPECTED} users of each group could expect",
            fix="explain more users, or join small groups in the user table",
        )
    measured = np.column_stack([each.values[members] for each in measures])
    draws = {"shuffles": options.shuffles, "seed": options.seed}
    kinds = [kind.of(members) for kind in users.kinds]
    proxies = find_proxies(kinds, groups, **draws)
    return Found(
        feature=feature,
        groups=tuple(levels[place] for place in kept),
        sizes=np.bincount(groups),
        unknown=int(len(codes) - np.isin(codes, kept).sum()),
        measures=measures,
        plain=gaps(measured, groups, None, **draws),
        given=gaps(measured, groups, same_history(facts, groups), **draws),
        proxies=proxies,
        carried=np.column_stack([users.shares(kind) for kind in users.kinds]),
        through=users.weighted(proxies.weights(options.alpha)),
        told=told_by_history(facts, groups, options.seed),
        flips=None
        if flipped is None
        else flips_of(flipped, feature[len(PREFIX) :], options.tolerated),
    )


def _common(measure: Measure, members: IntArray, groups: IntArray) -> bool:
    """Whether the smallest group could expect enough users (Cochran's rule), and any difference."""
    values = measure.values[members]
    there = (values > 0).mean() if measure.kind == "exposure" else 1.0
    return bool(np.ptp(values) > 0 and there * np.bincount(groups).min() >= EXPECTED)


def _verdict(found: Found, users: AuditUsers, options: AuditOptions) -> Record:
    tests = {"gap given history": float(found.given.p_values.min())}
    if found.flips is not None:
        tests["flips"] = found.flips.p_value
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    reasons = [name for name, p in corrected.items() if p <= options.alpha]
    through = mean_of(found.through)
    direct = mean_of(users.user_shares()) if users.has_user else None
    return {
        "feature": found.feature,
        "unfair": bool(reasons),
        "because": " and ".join(reasons),
        "p_value": float(min(corrected.values())),
        "groups": " / ".join(found.groups),
        "users": int(found.sizes.sum()),
        "users_aside": found.unknown,
        "p_gap": float(found.plain.p_values.min()),
        "p_gap_given_history": tests["gap given history"],
        "flips": None if found.flips is None else found.flips.changed,
        "p_flips": None if found.flips is None else found.flips.p_value,
        "user_share": None if direct is None else direct.value,
        "user_share_low": None if direct is None else direct.low,
        "user_share_high": None if direct is None else direct.high,
        "proxies": int((found.proxies.p_values <= options.alpha).sum()),
        "proxy_share": through.value,
        "proxy_share_low": through.low,
        "proxy_share_high": through.high,
        "told_by_history": found.told,
    }


def _gap_rows(found: Found, options: AuditOptions) -> list[Record]:
    """One record a measure and group; of two groups the first says it all."""
    shown = range(1) if len(found.groups) == 2 else range(len(found.groups))
    rows = []
    for column, measure in enumerate(found.measures):
        for place in shown:
            row: Record = {"feature": found.feature, "kind": measure.kind, "measure": measure.name}
            row |= {"group": found.groups[place], "users": int(found.sizes[place])}
            row["mean"] = float(found.plain.means[place, column])
            row["spread"] = float(measure.values.std())
            for name, gap in (("gap", found.plain), ("given_history", found.given)):
                value, error = gap.differences[place, column], gap.errors[place, column]
                row[name] = float(value)
                row[f"{name}_low"] = float(value - gap.critical * error)
                row[f"{name}_high"] = float(value + gap.critical * error)
                row[f"p_{name}"] = float(gap.p_values[column])
            row["found"] = bool(found.given.p_values[column] <= options.alpha)
            rows.append(row)
    return rows


def _proxy_rows(found: Found, options: AuditOptions) -> list[Record]:
    """One record a proxy, those through which most influence evaluations first."""
    rows = []
    for place in np.flatnonzero(found.proxies.p_values <= options.alpha):
        share = mean_of(found.carried[:, place])
        strength = float(found.proxies.strengths[place])
        rows.append(
            {
                "feature": found.feature,
                "kind": found.proxies.kinds[place],
                "level": found.proxies.levels[place],
                "group": found.groups[found.proxies.group[place]],
                "strength": strength,
                "auc": float(found.proxies.aucs[place]),
                "p_value": float(found.proxies.p_values[place]),
                "share": share.value,
                "share_low": share.low,
                "share_high": share.high,
                "through": strength * share.value,
            }
        )
    return sorted(rows, key=lambda row: -row["through"])


def _shown(
    facts: Record, verdicts: Sequence[Record], compared: Sequence[Record], telling: Sequence[Record]
) -> list[str]:
    lines = [
        f"{facts['explanations']:,} explanations of {facts['users']:,} users, {facts['method']}"
    ]
    for row in verdicts:
        said = f"unfairness found ({row['because']})" if row["unfair"] else "unfairness not found"
        lines.append(f"{row['feature']} ({row['groups']}): {said}, p {row['p_value']:.3g}")
    columns = ["feature", "p_gap", "p_gap_given_history", "flips", "user_share", "proxies"]
    lines += ["", *aligned(verdicts, [*columns, "proxy_share", "told_by_history"])]
    strong = sorted(
        (row for row in compared if row["found"]), key=lambda row: row["p_given_history"]
    )
    if strong:
        columns = ["feature", "measure", "group", "mean", "gap", "given_history", "p_given_history"]
        lines += ["", *aligned(strong[:8], columns)]
    if telling:
        columns = ["feature", "kind", "level", "group", "strength", "share", "through"]
        lines += ["", *aligned(telling[:8], columns)]
    return lines + [f"left out: {name} ({why})" for name, why in facts["left_out"].items()]
