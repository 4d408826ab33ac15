"""What the page calls analyses and their tables, and the one sentence that explains each.

Analyses and tables that are not named here are shown too, under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """A heading, and one sentence about it."""

    title: str
    note: str = ""


ANALYSES = {
    "factors": Words(
        "Which factors matter",
        "What events of large and of small influence have in common. A factor that goes with "
        "influence need not cause it.",
    ),
    "dynamics": Words(
        "How long influence lasts, and whether it changes",
        "Influence by age of the event and along the calendar.",
    ),
    "attribution": Words(
        "Which touch led to the conversion",
        "Rules of thumb and models of channels beside the influence of removing an event. All say "
        "what goes with conversions, none proves that a contact caused one.",
    ),
    "audit": Words(
        "Is it fair?",
        "How much of the predictions rests on sensitive features, and whether groups are served "
        "alike.",
    ),
}

TABLES = {
    ("factors", "ranking"): Words(
        "Ranking",
        "Spread: how far a factor moves influence, freed of chance. Permutation share: what the "
        "error of trees grows by when it is shuffled.",
    ),
    ("factors", "effects"): Words(
        "Effects of levels",
        "Change against the average event, other factors held, with intervals over users.",
    ),
    ("factors", "interactions"): Words(
        "Pairs", "How far two factors together move influence beyond the sum of both."
    ),
    ("factors", "interaction_cells"): Words(
        "Pairs that matter, level by level", "What each pair of levels adds to the sum of its two."
    ),
    ("factors", "weights"): Words(
        "Weights of behaviours", "What one event of each behaviour counts at equal age; most is 1."
    ),
    ("dynamics", "half_lives"): Words(
        "Half-lives", "After how long an event counts half, by the form of decay that fits best."
    ),
    ("dynamics", "decay"): Words("Decay", "Mean influence by age of the event."),
    ("dynamics", "drift"): Words("Drift", "Mean influence by window of the calendar."),
    ("dynamics", "changes"): Words(
        "Change points", "Windows from which on influence is no longer what it was before."
    ),
    ("dynamics", "moved"): Words(
        "Before and after", "What moved between two tables, the same users and events paired."
    ),
    ("attribution", "shares"): Words(
        "Shares of channels",
        "What each way of counting lays to a channel, as a share of what it lays to all of them.",
    ),
    ("attribution", "channels"): Words("Channels", "Touches and conversions of each channel."),
    ("attribution", "distances"): Words(
        "How far the ways of counting are apart",
        "From the model's shares, the effect of removing the channel's events.",
    ),
    ("audit", "verdict"): Words(
        "Verdict",
        "Unfair is a feature that moves what users of equal history get, or that alone changes it.",
    ),
    ("audit", "gaps"): Words(
        "Gaps between groups", "Differences as they are, and among users of equal history."
    ),
    ("audit", "proxies"): Words("Proxies", "Behaviour that gives the sensitive feature away."),
    ("audit", "flips"): Words(
        "Flips", "Share of users whose first recommendation changes with the feature alone."
    ),
}


def words_of(name: str) -> Words:
    """Of an analysis."""
    return ANALYSES.get(name, Words(_plain(name)))


def words_of_table(analysis: str, table: str) -> Words:
    """Of one of its tables."""
    return TABLES.get((analysis, table), Words(_plain(table)))


def _plain(name: str) -> str:
    return name.replace("_", " ").capitalize()
