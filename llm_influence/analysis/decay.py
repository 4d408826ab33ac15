"""How influence falls with the age of events: curves, fitted forms, half-lives, behaviour weights.

A curve is the mean score of events by age, with ages on a logarithmic axis. Two forms are fitted
by least squares, with every age weighted by its events:

    exponential   A 2^(-age / h)                 half-life h
    power         A (1 + age / s)^(-p)           half-life s (2^(1/p) - 1)

Standard errors take groups of users as units (`statistics`). Whether influence falls at all is
tested without a form: does the mean score go towards zero along the logarithm of age? The power
law can imitate the exponential, so it is chosen only if it predicts held-out users better by more
than one standard error (the rule of Breiman et al. 1984).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import optimize

from llm_influence.analysis.columns import MINUTE, exact_sum
from llm_influence.analysis.levels import BINS, FINE, Cells
from llm_influence.analysis.output import Record, with_interval
from llm_influence.analysis.statistics import (
    GROUPS,
    LEAST_GROUPS,
    correction,
    critical,
    divide,
    half_widths,
    means,
    occupied,
    p_value,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.types import FloatArray

FOLDS = 10
SHORTEST = 1.0  # seconds, the resolution of times
SECOND, CENTURY = np.log(SHORTEST), np.log(3.2e9)
STEP = 1e-5  # step of numerical derivatives by logarithms


@dataclass(frozen=True, slots=True)
class Form:
    """A curve that is 1 at age 0."""

    name: str
    # (..., K) values from (..., n) logarithms of parameters and (K,) ages in seconds
    shape: Callable[[FloatArray, FloatArray], FloatArray]
    # Logarithm of the half-life in seconds, from the parameters
    half_life: Callable[[FloatArray], float]
    # Start, end and number of grid points of each parameter; the best point starts a fit
    grid: tuple[tuple[float, float, int], ...]


def _exponential(parameters: FloatArray, ages: FloatArray) -> FloatArray:
    shape: FloatArray = np.exp2(-ages / np.exp(parameters))
    return shape


def _power(parameters: FloatArray, ages: FloatArray) -> FloatArray:
    own = np.exp(parameters)
    shape: FloatArray = (1 + ages / own[..., :1]) ** -own[..., 1:]
    return shape


EXPONENTIAL = Form("exponential", _exponential, lambda own: float(own[0]), ((SECOND, CENTURY, 90),))
POWER = Form(
    "power",
    _power,
    lambda own: float(own[0] + np.log(np.exp2(np.exp(-own[1])) - 1)),
    ((SECOND, CENTURY, 45), (np.log(0.05), np.log(20.0), 20)),
)
FORMS = (EXPONENTIAL, POWER)


@dataclass(frozen=True, slots=True, eq=False)
class FittedForm:
    """A form fitted to a curve."""

    form: Form
    start: float  # A, influence at age 0
    parameters: FloatArray  # Logarithms of the form's parameters
    half_life: float  # In seconds
    # Ends of its 95% interval; nan where the half-life is too short to measure
    interval: tuple[float, float]
    explained: float  # Share of the variance of mean scores over ages

    @property
    def too_short(self) -> bool:
        """Whether the half-life is at most `SHORTEST`."""
        return self.half_life <= SHORTEST * 1.01

    def at(self, ages: FloatArray) -> FloatArray:
        """(K,) values of the fitted curve."""
        return self.start * self.form.shape(self.parameters, ages)


@dataclass(frozen=True, slots=True, eq=False)
class Decay:
    """Decay of the events in some cells."""

    cells: Cells  # Sums of the events
    # ``fades`` towards zero or ``grows`` away from it along the logarithm of age, whether
    # significant or not; ``zero`` if all scores are zero; ``unknown`` with too few users
    trend: str
    p_value: float  # Test of no trend
    forms: dict[str, FittedForm]  # Fitted forms by name; empty for ``zero`` and ``unknown``
    better: float  # How many standard errors better the power law predicts held-out users

    @property
    def chosen(self) -> FittedForm:
        """The form for a curve that fades."""
        return self.forms[POWER.name if self.better > 1 else EXPONENTIAL.name]


def decay_of(cells: Cells) -> Decay:
    """Fit the decay of some cells; with users in fewer than `LEAST_GROUPS` groups, nothing."""
    with_events = cells.events.sum(axis=0) > 0
    totals, events = cells.totals[:, with_events], cells.events[:, with_events]
    ages = cells.ages[with_events]
    groups = int(occupied(events.sum(axis=1)))
    if groups < LEAST_GROUPS or len(ages) < 3 or not totals.any():
        trend = "unknown" if totals.any() else "zero"
        return Decay(cells, trend, float("nan"), {}, float("nan"))
    slope, error = _slope(totals, events, ages)
    forms = {form.name: _fitted(form, totals, events, ages) for form in FORMS}
    trend = "fades" if slope * forms[EXPONENTIAL.name].start < 0 else "grows"
    better = _better(totals, events, ages, forms)
    return Decay(cells, trend, p_value(slope, error, groups), forms, better)


class Curve(NamedTuple):
    """A curve over J ages, each a doubling of (1 minute + age) that has events."""

    edges: FloatArray  # (J,) lower edges in seconds
    ages: FloatArray  # (J,) mean ages in seconds
    events: FloatArray  # (J,) numbers of events
    means: FloatArray  # (J,) mean influence
    halves: FloatArray  # (J,) half the widths of 95% intervals; nan with too few users
    fitted: FloatArray  # (J,) mean of a fitted form over the same events; nan without one


def curve(cells: Cells, form: FittedForm | None = None) -> Curve:
    """The curve of some cells, and a fitted form beside it."""

    def doublings(values: FloatArray) -> FloatArray:
        return values.reshape(*values.shape[:-1], BINS // FINE, FINE).sum(axis=-1)

    def mean(values: FloatArray) -> FloatArray:
        return divide(doublings(np.nan_to_num(values) * count), doublings(count))[kept]

    events, count = doublings(cells.events), cells.events.sum(axis=0)
    kept = events.sum(axis=0) > 0
    ages = np.nan_to_num(cells.ages)
    middle, error = means(doublings(cells.totals)[:, kept], events[:, kept])
    return Curve(
        edges=MINUTE * (np.exp2(np.arange(BINS // FINE)) - 1)[kept],
        ages=mean(ages),
        events=events.sum(axis=0)[kept],
        means=middle,
        halves=half_widths(error, occupied(events[:, kept])),
        fitted=mean(form.at(ages)) if form else np.full(int(kept.sum()), np.nan),
    )


def _slope(totals: FloatArray, events: FloatArray, ages: FloatArray) -> tuple[float, float]:
    """Slope of the mean score along log(1 + age in minutes), with its standard error."""
    along = np.log2(1 + ages / MINUTE)
    count = events.sum(axis=0)
    along = along - along @ count / count.sum()
    spread = along**2 @ count
    mean = totals.sum() / count.sum()
    slope = float(along @ totals.sum(axis=0) / spread)
    scores = (totals - events * (mean + slope * along)) @ along
    groups = occupied(events.sum(axis=1))
    return slope, float(np.sqrt(correction(groups) * (scores**2).sum()) / spread)


def best_fit(
    form: Form,
    total: FloatArray,
    count: FloatArray,
    ages: FloatArray,
    start: FloatArray | None = None,
) -> tuple[FloatArray, float]:
    """Least-squares parameters of a curve, and A, which has a closed form.

    Args:
        form: The curve.
        total: (K,) sums of scores.
        count: (K,) numbers of events, not 0.
        ages: (K,) mean ages in seconds.
        start: Parameters from which the best are searched; default: the best of a grid.
    """

    def loss(parameters: FloatArray) -> FloatArray:
        shape = form.shape(parameters, ages)
        return -((shape @ total) ** 2) / (shape**2 @ count)

    if start is None:
        grid = np.array(list(product(*(np.linspace(*axis) for axis in form.grid))))
        start = grid[loss(grid).argmin()]
    scale = float(-loss(start)) or 1.0
    best = optimize.minimize(
        lambda own: float(loss(own)) / scale,
        start,
        method="Nelder-Mead",
        bounds=[axis[:2] for axis in form.grid],
        options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 1000},
    ).x
    shape = form.shape(best, ages)
    return best, float(shape @ total / (shape**2 @ count))


def _fitted(form: Form, totals: FloatArray, events: FloatArray, ages: FloatArray) -> FittedForm:
    total, count = totals.sum(axis=0), events.sum(axis=0)
    own, start = best_fit(form, total, count, ages)
    steps = STEP * np.eye(len(own))
    shapes = [form.shape(own + s, ages) - form.shape(own - s, ages) for s in steps]
    jacobian = np.stack([form.shape(own, ages), *(start * s / (2 * STEP) for s in shapes)], axis=1)
    fitted = start * form.shape(own, ages)
    scores = (totals - events * fitted) @ jacobian
    bread = np.linalg.pinv(jacobian.T @ (count[:, None] * jacobian), hermitian=True)
    moved = [form.half_life(own + s) - form.half_life(own - s) for s in steps]
    gradient = np.array([0.0, *moved]) / (2 * STEP)
    groups = occupied(events.sum(axis=1))
    variance = correction(groups) * ((scores @ bread @ gradient) ** 2).sum()
    half = float(critical(groups) * np.sqrt(variance))
    log = max(form.half_life(own), SECOND)
    if log <= SECOND + STEP:
        half = float("nan")
    mean = total / count
    around = count @ (mean - total.sum() / count.sum()) ** 2
    explained = 1 - count @ (mean - fitted) ** 2 / around if around else 0.0
    low, high = np.exp(np.clip([log - half, log + half], -700, 700))
    return FittedForm(
        form, start, own, float(np.exp(log)), (float(low), float(high)), float(explained)
    )


def _better(
    totals: FloatArray, events: FloatArray, ages: FloatArray, whole: dict[str, FittedForm]
) -> float:
    """Squared error on held-out groups that the power law saves, in its standard errors."""
    groups = np.flatnonzero(events.sum(axis=1))
    saved = np.zeros(len(groups))
    for fold in range(FOLDS):
        held = np.arange(len(groups)) % FOLDS == fold
        train, test = groups[~held], groups[held]
        total, count = totals[train].sum(axis=0), events[train].sum(axis=0)
        kept = count > 0
        losses = []
        for form in FORMS:
            near = whole[form.name].parameters
            own, start = best_fit(form, total[kept], count[kept], ages[kept], near)
            fitted = start * form.shape(own, ages)
            losses.append(events[test] @ fitted**2 - 2 * totals[test] @ fitted)
        saved[held] = losses[0] - losses[1]
    error = np.sqrt(len(saved) * saved.var(ddof=1))
    return float(saved.sum() / error) if error else 0.0


# --- weights of behaviours -------------------------------------------------------------------

ROUNDS = 200
OLDEST = 50  # ages are cut at half powers of two of minutes; the oldest range has no end


def behavior_weights(view: InfluenceView, match: str | None = None) -> list[Record]:
    """Compare behaviours at equal age, by a product form fitted to cell means.

    Influence falls with age, and behaviours differ in how recent they are, so plain means of
    behaviours mix both. The form ``mean score of (behaviour b, age a) = w_b d_a`` separates them
    without assuming a shape of the decay d. Alternating least squares finds the best product for
    the table of cell means, each weighted by its events. Standard errors leave out one group of
    users at a time (the delete-a-group jackknife). There is one record per behaviour, the largest
    weight, 1, first. ``match`` is a column ``match:...``, see `InfluenceView.sign_of`.
    """
    sign = view.sign_of(match)
    columns = ["user", "behavior", "age_seconds", "score", *([match] if match else [])]
    names = ["u", "behavior", "age", "score", *(["side"] if match else [])]
    cells = view.table(
        f"SELECT u % {GROUPS} AS part, behavior, "
        f"least(floor(2 * log2(1 + age / 60)), {OLDEST})::INTEGER AS age, "
        f"{exact_sum(f'score * {sign}')} AS total, count(*) AS events "
        f"FROM ({view.select(*columns)}) AS t({', '.join(names)}) WHERE {sign} IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    behaviors, place = np.unique(cells["behavior"].to_numpy(), return_inverse=True)
    groups, group = np.unique(cells["part"].to_numpy(), return_inverse=True)
    totals, events = np.zeros((2, len(groups), len(behaviors), OLDEST + 1))
    where = (group, place, cells["age"].to_numpy())
    totals[where], events[where] = cells["total"].to_numpy(), cells["events"].to_numpy()
    total, count = totals.sum(axis=0), events.sum(axis=0)
    weights = _product(total, count)
    left = [_product(total - t, count - n) for t, n in zip(totals, events, strict=True)]
    squares = ((np.array(left) - weights) ** 2).sum(axis=0)
    errors = np.sqrt((len(groups) - 1) / len(groups) * squares)
    halves = errors * critical(len(groups))
    records = [
        {
            "behavior": str(name),
            "weight": float(weight),
            "standard_error": float(error),
            **with_interval("weight", weight, half),
            "events": int(n),
        }
        for name, weight, error, half, n in zip(
            behaviors, weights, errors, halves, count.sum(axis=1), strict=True
        )
    ]
    return sorted(records, key=lambda record: -record["weight"])


def _product(totals: FloatArray, events: FloatArray) -> FloatArray:
    """(B,) row factor of the best product for (B, A) means; the largest is 1."""
    weights = divide(totals.sum(axis=1), events.sum(axis=1), none=0.0)
    for _ in range(ROUNDS):
        decay = divide(weights @ totals, weights**2 @ events, none=0.0)
        weights = divide(totals @ decay, events @ decay**2, none=0.0)
    largest = np.abs(weights).max(initial=0.0)
    return weights / largest if largest else weights
