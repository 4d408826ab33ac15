"""Do sensitive features of users decide what they get? An audit from influence tables alone.

For each feature the audit measures the influence of the feature itself and of behaviour that is a
proxy for it; whether groups of users get something different, also among users with the same
history; and whether the feature alone changes the recommendation (the counterfactual fairness
test, if it was run). The verdict rests on the last two. Their p-values are corrected for each
other (Holm), so a feature without any effect is accused with probability alpha at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llm_influence.analysis.audit_users import (
    AuditUsers,
    FairnessTest,
    Measure,
    fairness_test_of,
    find_fairness_test,
    interval_record,
    large_groups,
)
from llm_influence.analysis.output import (
    BLUE,
    ORANGE,
    Analysis,
    Record,
    Records,
    Table,
    aligned,
    closing_lines,
    draw_rows,
    finish_rows,
    new_figure,
    numbers,
    points,
    with_interval,
)
from llm_influence.analysis.statistics import (
    NORMAL,
    Associations,
    GroupDifferences,
    associations,
    group_auc,
    group_differences,
    history_controls,
    holm,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.config.analyses import AuditOptions
from llm_influence.errors import ConfigError, DataError, out_of_range
from llm_influence.influence.plots import MARKERS, OKABE_ITO
from llm_influence.types import IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_USERS = 20
LEAST_GROUP = 10  # a group with fewer users is left out
EXPECTED = 5
"""What is recommended is compared if so many users of each group would get it by chance."""
LEAST_SHUFFLES = 99
MOST_SHOWN = 15  # proxies of the figure
PREFIX = "user:"


def analyze_audit(view: InfluenceView, options: AuditOptions) -> Analysis:
    """Audit every sensitive feature.

    Args:
        view: The tables, with at least `LEAST_USERS` users.
        options: Sensitive features and tests.

    Returns:
        Tables ``verdict``, ``differences``, ``proxies`` and ``fairness_test``.

    Raises:
        DataError: There are too few users, an unknown feature, fewer than two groups of users, or
            nothing in which users differ.
        SchemaError: The table of the counterfactual fairness test has another version.
        ConfigError: No feature is named, or an option is out of range.
    """
    _check(options)
    view.require_users(LEAST_USERS, "groups of users are compared")
    users, tested = AuditUsers(view), find_fairness_test(view.sources)
    if not users.measures:
        raise DataError(
            "nothing differs between users: " + "; ".join(users.left_out),
            where="influence tables",
            expected="recommendations or predictions that differ",
            fix="explain each user's own recommendation with --target top1",
        )
    audited = [_audit(users, name, tested, options) for name in dict.fromkeys(options.sensitive)]
    rows = {key: [row for feature in audited for row in feature[key]] for key in audited[0]}
    tables = {
        "verdict": Table(rows["verdict"]),
        "differences": Table(rows["differences"], draw_differences(rows["differences"])),
        "proxies": Table(rows["proxies"], draw_proxies(rows["proxies"])),
    }
    if pairs := rows["fairness_test"]:
        tables["fairness_test"] = Table(pairs, draw_fairness_test(pairs))
    facts = view.facts(options) | {"left_out": users.left_out}
    return Analysis("audit", facts, tables, _shown(facts, rows))


def _check(options: AuditOptions) -> None:
    wrong = [name for name in options.sensitive if not name.startswith(PREFIX)]
    if wrong or not options.sensitive:
        raise ConfigError(
            f"{wrong[0]!r} is no feature of users" if wrong else "no sensitive feature is named",
            where="sensitive features",
            expected="a column of the user table as user:NAME",
            fix="name it, for example --sensitive user:gender",
        )
    for name, low in (("alpha", 1e-9), ("tolerated", 0)):
        if not low <= getattr(options, name) < 1:
            value = getattr(options, name)
            raise out_of_range(ConfigError, name, value, expected="at least 0 and below 1")
    if options.shuffles < LEAST_SHUFFLES:
        expected = f"at least {LEAST_SHUFFLES}"
        raise out_of_range(ConfigError, "shuffles", options.shuffles, expected=expected)


def _audit(
    users: AuditUsers, feature: str, tested: pa.Table | None, options: AuditOptions
) -> dict[str, list[Record]]:
    """The rows of one feature, by table."""
    names, members, groups, without = _members(users, feature, options)
    facts = users.facts[members]
    measures = [m for m in users.measures if _is_common(m, members, groups)]
    if not measures:
        raise DataError(
            f"too few of {len(members)} users differ in what is recommended",
            where=feature,
            expected=f"recommendations that {EXPECTED} users of each group would get by chance",
            fix="explain more users, or join small groups in the user table",
        )
    measured = np.column_stack([measure.values[members] for measure in measures])
    seeds = {"shuffles": options.shuffles, "seed": options.seed}
    plain = group_differences(measured, groups, None, **seeds)
    given = group_differences(measured, groups, history_controls(facts, groups), **seeds)
    ranks = np.column_stack([kind.ranks(members) for kind in users.kinds])
    proxies = associations(ranks, groups, **seeds)
    kinds = np.array([kind.name for kind in users.kinds for _ in kind.levels])
    strengths = np.where(proxies.p_values <= options.alpha, proxies.strengths, 0.0)
    through = users.weighted({kind.name: strengths[kinds == kind.name] for kind in users.kinds})
    name = feature.removeprefix(PREFIX)
    test = None if tested is None else fairness_test_of(tested, name, options.tolerated)
    head: Record = {"feature": feature}
    verdict = {
        **head,
        **_verdict(float(given.p_values.min()), test, options.alpha),
        "groups": " / ".join(names),
        "users": len(members),
        "users_without_group": without,
        "p_difference": float(plain.p_values.min()),
        "p_given_history": float(given.p_values.min()),
        "changed": test.changed if test else None,
        "p_fairness_test": test.p_value if test else None,
        **interval_record("user_share", users.user_shares() if users.has_user else None),
        "proxies": int((proxies.p_values <= options.alpha).sum()),
        **interval_record("proxy_share", through),
        "history_auc": group_auc(facts, groups, options.seed),
    }
    differences = _difference_rows(
        names, np.bincount(groups), measures, plain, given, options.alpha
    )
    return {
        "verdict": [verdict],
        "differences": [head | row for row in differences],
        "proxies": [head | row for row in _proxy_rows(users, names, proxies, options.alpha)],
        "fairness_test": test.pairs if test else [],
    }


def _members(
    users: AuditUsers, feature: str, options: AuditOptions
) -> tuple[list[str], IntArray, IntArray, int]:
    """Names of the large groups, their (n,) users and codes, and the number of other users."""
    levels, codes = users.groups(feature)
    kept = large_groups(feature, levels, codes, LEAST_GROUP)
    members = np.flatnonzero(np.isin(codes, kept))
    if len(members) > options.most_users:
        drawn = np.random.default_rng(options.seed).permutation(members)[: options.most_users]
        members = np.sort(drawn)
        kept = large_groups(feature, levels, codes[members], LEAST_GROUP)
        members = members[np.isin(codes[members], kept)]
    without = int(len(codes) - np.isin(codes, kept).sum())
    return [levels[c] for c in kept], members, np.searchsorted(kept, codes[members]), without


def _is_common(measure: Measure, members: IntArray, groups: IntArray) -> bool:
    """Whether the smallest group could expect enough users (Cochran's rule), and users differ."""
    values = measure.values[members]
    share = (values > 0).mean() if measure.kind == "exposure" else 1.0
    return bool(np.ptp(values) > 0 and share * np.bincount(groups).min() >= EXPECTED)


def _verdict(given: float, test: FairnessTest | None, alpha: float) -> Record:
    p_values = {"difference given history": given}
    if test is not None:
        p_values["counterfactual fairness test"] = test.p_value
    corrected = holm(list(p_values.values()))
    reasons = [name for name, p in zip(p_values, corrected, strict=True) if p <= alpha]
    return {
        "unfair": bool(reasons),
        "because": " and ".join(reasons),
        "p_value": float(corrected.min()),
    }


def _difference_rows(
    names: list[str],
    sizes: IntArray,
    measures: list[Measure],
    plain: GroupDifferences,
    given: GroupDifferences,
    alpha: float,
) -> Iterator[Record]:
    """One record per measure and group; of two groups only the first."""
    for column, measure in enumerate(measures):
        for place in range(1 if len(names) == 2 else len(names)):
            row: Record = {
                "kind": measure.kind,
                "measure": measure.name,
                "group": names[place],
                "users": int(sizes[place]),
                "mean": float(plain.means[place, column]),
                "spread": float(measure.values.std()),
            }
            for name, test in (("difference", plain), ("given_history", given)):
                half = test.errors[place, column] * NORMAL
                row |= with_interval(name, test.differences[place, column], half, f"{name}_")
                row[f"p_{name}"] = float(test.p_values[column])
            yield row | {"significant": bool(row["p_given_history"] <= alpha)}


def _proxy_rows(
    users: AuditUsers, names: list[str], proxies: Associations, alpha: float
) -> list[Record]:
    """One record per proxy, the one with the most weighted influence first."""
    levels = [(kind.name, level) for kind in users.kinds for level in kind.levels]
    shares = np.column_stack([users.shares(kind) for kind in users.kinds])
    rows = []
    for place in np.flatnonzero(proxies.p_values <= alpha):
        share, strength = interval_record("share", shares[:, place]), proxies.strengths[place]
        rows.append(
            {
                "kind": levels[place][0],
                "level": levels[place][1],
                "group": names[proxies.group[place]],
                "strength": float(strength),
                "auc": float(proxies.aucs[place]),
                "p_value": float(proxies.p_values[place]),
                **share,
                "through": float(strength * share["share"]),
            }
        )
    return sorted(rows, key=lambda row: -row["through"])


def _shown(facts: Record, rows: Mapping[str, Records]) -> list[str]:
    verdicts, differences, proxies = (rows[key] for key in ("verdict", "differences", "proxies"))
    lines = [
        f"{facts['explanations']:,} explanations of {facts['users']:,} users, {facts['method']}"
    ]
    for row in verdicts:
        text = f"unfairness found ({row['because']})" if row["unfair"] else "unfairness not found"
        lines.append(f"{row['feature']} ({row['groups']}): {text}, p {row['p_value']:.3g}")
    columns = ["feature", "p_difference", "p_given_history", "changed", "user_share", "proxies"]
    lines += ["", *aligned(verdicts, [*columns, "proxy_share", "history_auc"])]
    significant = sorted(
        (row for row in differences if row["significant"]), key=lambda row: row["p_given_history"]
    )
    if significant:
        columns = ["feature", "measure", "group", "mean", "difference", "given_history"]
        lines += ["", *aligned(significant[:8], [*columns, "p_given_history"])]
    if proxies:
        columns = ["feature", "kind", "level", "group", "strength", "share", "through"]
        lines += ["", *aligned(proxies[:8], columns)]
    return lines + closing_lines(facts)


# --- figures ---------------------------------------------------------------------------------

MOST_DIFFERENCES = 30  # rows of the figure of group differences; the table has all


def draw_differences(rows: Records) -> Figure:
    """Group differences in standard deviations, plain and among users with the same history."""
    ranks = [(not r["significant"], r["p_given_history"], r["p_difference"]) for r in rows]
    order = sorted(range(len(rows)), key=ranks.__getitem__)
    drawn = [rows[place] for place in sorted(order[:MOST_DIFFERENCES])]
    figure = new_figure(9, 1.4 + 0.3 * len(drawn))
    axis = figure.subplots()
    labels = {"difference": "all users", "given_history": "among users with the same history"}
    for number, (name, label) in enumerate(labels.items()):
        points(
            axis,
            drawn,
            (name, f"{name}_low", f"{name}_high"),
            places=np.arange(len(drawn)) + 0.2 * number - 0.1,
            scale=numbers(drawn, "spread"),
            color=OKABE_ITO[number],
            marker=MARKERS[number],
            label=label,
        )
    finish_rows(
        axis,
        [f"{r['measure']}, {r['group']}" + (" *" if r["significant"] else "") for r in drawn],
        "difference from all other users, in standard deviations over users\n"
        "(95% intervals of single measures; *: significant over all measures)",
    )
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    return figure


def draw_proxies(rows: Records) -> Figure | None:
    """How well each proxy separates the groups, and its share of influence."""
    drawn = list(rows[:MOST_SHOWN])
    if not drawn:
        return None
    figure = new_figure(10, 1.3 + 0.34 * len(drawn))
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(np.arange(len(drawn)), numbers(drawn, "strength"), color=BLUE, height=0.6)
    points(right, drawn, ("share", "share_low", "share_high"), color=ORANGE, marker="s")
    names = [f"{row['level']} ({row['group']})" for row in drawn]
    finish_rows(left, names, "strength of association with the groups (0 to 1)")
    finish_rows(right, names, "share of all influence")
    return figure


def draw_fairness_test(rows: Records) -> Figure:
    """Share of users who get another first recommendation, by the value that replaces theirs."""
    names = [f"{row['feature']}: {row['value']} as {row['other']}" for row in rows]
    label = "share of users whose first recommendation changes"
    return draw_rows(rows, ("changed", "changed_low", "changed_high"), names, label)
