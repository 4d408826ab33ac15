"""How influence fades with age: curves, a form for each, and its half-life.

A curve is the mean score of events by age, ages cut on a logarithmic axis. Two forms are fitted to
it, by least squares with every cell weighted by its events,

    exponential   A 2^(-age / h)                 half-life h
    power         A (1 + age / s)^(-p)           half-life s (2^(1/p) - 1)

and standard errors take parts of the users as units (the sandwich estimator of `parts`). Whether
influence fades at all is tested without a form: does the mean score go towards zero along the
logarithm of age? The power law, which can imitate the exponential, has to foretell users who were
held out of the fit better than it by more than a standard error (the rule of Breiman et al. 1984).

What one event of each behaviour counts, at equal age: a product form fitted to cell means.

Influence fades, and behaviours differ in how recent they are, so plain means of behaviours mix what
was done with when. The form

    mean score of (behaviour b, age a) = w_b d_a

separates them without a shape assumed for the decay d: the best product for the table of cell
means, each weighted by its events, found by alternating least squares. Standard errors leave out
one of `GROUPS` groups of users at a time (the delete-a-group jackknife).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize, stats

from llm_influence.analysis.bins import MINUTE
from llm_influence.analysis.columns import total
from llm_influence.analysis.event_cells import BINS, FINE, Cells
from llm_influence.analysis.regression import holm
from llm_influence.analysis.statistics import (
    LEAST_PARTS,
    LEVEL,
    correction,
    critical,
    divide,
    half_widths,
    means,
    occupied,
    p_value,
    speaking,
)
from llm_influence.analysis.tables import InfluenceView
from llm_influence.types import FloatArray

FOLDS = 10
SHORTEST = 1.0
"""Seconds; times have no finer unit."""
SECOND, CENTURY = np.log(SHORTEST), np.log(3.2e9)
STEP = 1e-5
"""Of numerical derivatives, in logarithms."""


@dataclass(frozen=True, slots=True)
class Form:
    """A shape that is 1 at age 0.

    Attributes:
        name: As reported.
        shape: (..., K) of (..., n) parameters, logarithms all, and (K,) ages in seconds.
        half_life: Logarithm of the half-life in seconds, of the parameters.
        starts: Grids of the parameters, from the best point of which a fit goes on.
    """

    name: str
    shape: Callable[[FloatArray, FloatArray], FloatArray]
    half_life: Callable[[FloatArray], float]
    starts: tuple[tuple[float, float, int], ...]


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
    """A form fitted to a curve.

    Attributes:
        form: Which.
        start: A, influence at age 0.
        parameters: Of the form, logarithms.
        half_life: In seconds.
        interval: The ends of its 95% interval; nan where the half-life is too short to be told.
        explained: Share of what the mean score varies with age.
    """

    form: Form
    start: float
    parameters: FloatArray
    half_life: float
    interval: tuple[float, float]
    explained: float

    @property
    def too_short(self) -> bool:
        """Whether all that is known is that it is no longer than `SHORTEST`."""
        return self.half_life <= SHORTEST * 1.01

    def at(self, ages: FloatArray) -> FloatArray:
        """(K,) its curve."""
        return self.start * self.form.shape(self.parameters, ages)


@dataclass(frozen=True, slots=True, eq=False)
class Decay:
    """What is known of the decay of one group.

    Attributes:
        cells: The group.
        trend: ``fades`` towards zero or ``grows`` away from it along the logarithm of age, be it by
            chance; ``zero`` where every score is, ``unknown`` with too little to fit.
        p_value: Of no trend.
        forms: By name; empty where there is too little to fit.
        better: How many standard errors better the power law foretells unseen users.
    """

    cells: Cells
    trend: str
    p_value: float
    forms: dict[str, FittedForm]
    better: float

    @property
    def chosen(self) -> FittedForm:
        """The form that suits the curve, if the curve fades."""
        return self.forms[POWER.name if self.better > 1 else EXPONENTIAL.name]


def decay_of(cells: Cells) -> Decay:
    """Fit the decay of one group; with users in fewer than `LEAST_PARTS` parts, nothing."""
    seen = cells.events.sum(axis=0) > 0
    totals, events, ages = cells.totals[:, seen], cells.events[:, seen], cells.ages[seen]
    parts = int((events.sum(axis=1) > 0).sum())
    if parts < LEAST_PARTS or len(ages) < 3 or not totals.any():
        trend = "unknown" if totals.any() else "zero"
        return Decay(cells, trend, float("nan"), {}, float("nan"))
    slope, error = _slope(totals, events, ages)
    forms = {form.name: _fitted(form, totals, events, ages) for form in FORMS}
    towards = slope * forms[EXPONENTIAL.name].start < 0
    return Decay(
        cells,
        "fades" if towards else "grows",
        p_value(slope, error, parts),
        forms,
        _better(totals, events, ages, forms),
    )


def corrected(decays: Sequence[Decay]) -> FloatArray:
    """Holm's p-values of no trend, over all groups."""
    return holm([each.p_value for each in decays])


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A curve for people: J doublings of (1 minute + age), those without events left out.

    Attributes:
        edges: (J,) lower edges in seconds.
        ages: (J,) mean ages.
        events: (J,) how many.
        means: (J,) mean influence.
        halves: (J,) half the widths of 95% intervals; nan with too few users.
        fitted: (J,) mean over the same events of a form; nan without one.
    """

    edges: FloatArray
    ages: FloatArray
    events: FloatArray
    means: FloatArray
    halves: FloatArray
    fitted: FloatArray


def curve(cells: Cells, form: FittedForm | None = None) -> Curve:
    """The curve of a group, and a form beside it."""

    def doublings(values: FloatArray) -> FloatArray:
        return values.reshape(*values.shape[:-1], BINS // FINE, FINE).sum(axis=-1)

    def mean(values: FloatArray) -> FloatArray:
        return divide(doublings(np.nan_to_num(values) * count), doublings(count))

    events, count = doublings(cells.events), cells.events.sum(axis=0)
    seen = events.sum(axis=0) > 0
    ages = np.nan_to_num(cells.ages)
    middle, error = means(doublings(cells.totals)[:, seen], events[:, seen])
    return Curve(
        edges=MINUTE * (np.exp2(np.arange(BINS // FINE)) - 1)[seen],
        ages=mean(ages)[seen],
        events=events.sum(axis=0)[seen],
        means=middle,
        halves=half_widths(error, occupied(events[:, seen])),
        fitted=mean(form.at(ages))[seen] if form else np.full(int(seen.sum()), np.nan),
    )


def _slope(totals: FloatArray, events: FloatArray, ages: FloatArray) -> tuple[float, float]:
    """Of the mean score along log(1 + age in minutes), with its standard error."""
    along = np.log2(1 + ages / MINUTE)
    count = events.sum(axis=0)
    along = along - along @ count / count.sum()
    spread = along**2 @ count
    mean = totals.sum() / count.sum()
    slope = float(along @ totals.sum(axis=0) / spread)
    scores = (totals - events * (mean + slope * along)) @ along
    parts = (events.sum(axis=1) > 0).sum()
    return slope, float(np.sqrt(correction(parts) * (scores**2).sum()) / spread)


def _best(
    form: Form,
    total: FloatArray,
    count: FloatArray,
    ages: FloatArray,
    start: FloatArray | None = None,
) -> FloatArray:
    """Parameters of the least squares, sought from ``start``; A follows in closed form."""

    def missed(parameters: FloatArray) -> FloatArray:
        shape = form.shape(parameters, ages)
        return -((shape @ total) ** 2) / (shape**2 @ count)

    if start is None:
        grid = np.array(list(product(*(np.linspace(*axis) for axis in form.starts))))
        start = grid[missed(grid).argmin()]
    scale = float(-missed(start)) or 1.0
    found = optimize.minimize(
        lambda own: float(missed(own)) / scale,
        start,
        method="Nelder-Mead",
        bounds=[axis[:2] for axis in form.starts],
        options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 1000},
    )
    best: FloatArray = found.x
    return best


def _start(
    form: Form, parameters: FloatArray, total: FloatArray, count: FloatArray, ages: FloatArray
) -> float:
    shape = form.shape(parameters, ages)
    return float(shape @ total / (shape**2 @ count))


def _fitted(form: Form, totals: FloatArray, events: FloatArray, ages: FloatArray) -> FittedForm:
    total, count = totals.sum(axis=0), events.sum(axis=0)
    own = _best(form, total, count, ages)
    start = _start(form, own, total, count, ages)
    steps = STEP * np.eye(len(own))
    shapes = [form.shape(own + s, ages) - form.shape(own - s, ages) for s in steps]
    jacobian = np.stack([form.shape(own, ages), *(start * s / (2 * STEP) for s in shapes)], axis=1)
    fitted = start * form.shape(own, ages)
    scores = (totals - events * fitted) @ jacobian
    bread = np.linalg.pinv(jacobian.T @ (count[:, None] * jacobian), hermitian=True)
    moved = [form.half_life(own + s) - form.half_life(own - s) for s in steps]
    gradient = np.array([0.0, *moved]) / (2 * STEP)
    parts = int((events.sum(axis=1) > 0).sum())
    variance = correction(np.array(parts)) * ((scores @ bread @ gradient) ** 2).sum()
    half = float(critical(parts) * np.sqrt(variance))
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
    """Squared error on held-out parts that the power law saves, in its standard errors."""
    parts = np.flatnonzero(events.sum(axis=1))
    saved = np.zeros(len(parts))
    for fold in range(FOLDS):
        held = np.arange(len(parts)) % FOLDS == fold
        rest, asked = parts[~held], parts[held]
        total, count = totals[rest].sum(axis=0), events[rest].sum(axis=0)
        seen = count > 0
        lost = []
        for form in FORMS:
            near = whole[form.name].parameters
            own = _best(form, total[seen], count[seen], ages[seen], near)
            start = _start(form, own, total[seen], count[seen], ages[seen])
            fitted = start * form.shape(own, ages)
            lost.append(events[asked] @ fitted**2 - 2 * totals[asked] @ fitted)
        saved[held] = lost[0] - lost[1]
    error = np.sqrt(len(saved) * saved.var(ddof=1))
    return float(saved.sum() / error) if error else 0.0


GROUPS = 100
ROUNDS = 200
OLDEST = 50
"""Ages are cut at half powers of two, of minutes; the oldest range is open."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Behaviours on one scale.

    Attributes:
        behaviors: (B,) names.
        values: (B,) weights, the largest being 1.
        errors: (B,) standard errors over users.
        events: (B,) events behind each.
        groups: Of users, left out in turn.
    """

    behaviors: tuple[str, ...]
    values: FloatArray
    errors: FloatArray
    events: FloatArray
    groups: int

    @property
    def critical(self) -> float:
        """Half the width of a 95% interval, in standard errors."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.groups - 1))


def behavior_weights(view: InfluenceView, match: str | None = None) -> Weights:
    """Fit the product form.

    Args:
        view: The tables; at least 2 users.
        match: A column ``match:...`` that tells what each event counts for
            (`llm_influence.analysis.parts.speaking`). Default: every event counts as it is.

    Raises:
        DataError: There is no such column.
        ConfigError: It is another column.
    """
    side = speaking(view, match)
    columns = ["user", "behavior", "age_seconds", "score", *([match] if match else [])]
    names = ["u", "behavior", "age", "score", *(["side"] if match else [])]
    cells = view.table(
        f"SELECT u % {GROUPS} AS part, behavior, "
        f"least(floor(2 * log2(1 + age / 60)), {OLDEST})::INTEGER AS age, "
        f"{total(f'score * {side}')} AS total, count(*) AS events "
        f"FROM ({view.select(*columns)}) AS t({', '.join(names)}) WHERE {side} IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    behaviors = tuple(sorted(set(cells["behavior"].to_pylist())))
    parts, part = np.unique(cells["part"].to_numpy(), return_inverse=True)
    place = np.array([behaviors.index(name) for name in cells["behavior"].to_pylist()], dtype=int)
    totals, events = np.zeros((2, len(parts), len(behaviors), OLDEST + 1))
    where = (part, place, cells["age"].to_numpy())
    totals[where], events[where] = cells["total"].to_numpy(), cells["events"].to_numpy()
    whole = totals.sum(axis=0), events.sum(axis=0)
    values = _product(*whole)
    left = [_product(whole[0] - t, whole[1] - n) for t, n in zip(totals, events, strict=True)]
    count = len(parts)
    errors = np.sqrt((count - 1) / count * ((np.array(left) - values) ** 2).sum(axis=0))
    return Weights(behaviors, values, errors, whole[1].sum(axis=1), count)


def _product(totals: FloatArray, events: FloatArray) -> FloatArray:
    """(B,) the factor of rows of the best product for (B, A) means, the largest being 1."""
    weights = _solve(totals.sum(axis=1), events.sum(axis=1))
    for _ in range(ROUNDS):
        decay = _solve(weights @ totals, weights**2 @ events)
        weights = _solve(totals @ decay, events @ decay**2)
    largest = np.abs(weights).max(initial=0.0)
    return weights / largest if largest else weights


def _solve(moved: FloatArray, known: FloatArray) -> FloatArray:
    return np.divide(moved, known, out=np.zeros_like(moved), where=known > 0)
