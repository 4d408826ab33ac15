"""Hand features of a question, all known at the moment it is asked.

What is said of an item comes from training events alone. `past`: those before the moment. `others`:
those of other users at any moment, as every trained model has them; for a trained row users are cut
into five folds and its own fold is left out, because an average that leaves out only the row
itself gives its label away. What is said of a user comes from the events before the question.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.peers.feedback_task import Floats, Ints, Task

FOLDS = 5
PRIOR = 5.0
"""Events' worth of the overall mean in every mean."""

HALF_LIVES = (3.0, 15.0)
"""Of recency-weighted means, in events."""

LAST = (3, 10, 30)
HOUR = 3600.0


def table(task: Task, statistics: str) -> tuple[list[str], Floats]:
    """Names of F features and their (N events, F) values, as if every event were asked.

    Args:
        task: The task.
        statistics: `past` or `others`.
    """
    items = STATISTICS[statistics](task)
    groups = {
        **_item_features(task, items),
        **_user_features(task, items),
        **_genre_features(task, items),
        **_time_features(task),
        **_person_features(task),
    }
    return list(groups), np.stack(list(groups.values()), axis=1)


def categorical(names: list[str]) -> list[bool]:
    """Which features are codes without an order."""
    return [name == "occupation" for name in names]


class ItemStatistics:
    """Sums over training events of each event's item, without the event itself.

    Args:
        count: (N,) how many.
        ratings: (N,) sum of their ratings.
        likes: (N,) how many were likes.
        task: Gives the overall means of training.
    """

    def __init__(self, count: Floats, ratings: Floats, likes: Floats, task: Task) -> None:
        self.count = count
        self.mean_rating = task.ratings[task.trained].mean()
        self.mean_like = task.likes[task.trained].mean()
        self.rating = (ratings + PRIOR * self.mean_rating) / (count + PRIOR)
        self.like = (likes + PRIOR * self.mean_like) / (count + PRIOR)


def _past(task: Task) -> ItemStatistics:
    """Training events before each event's moment; those of the same second are not before it."""
    count, ratings, likes = (np.zeros(len(task.items)) for _ in range(3))
    order = np.argsort(task.items, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(task.items[order])) + 1):
        trained = places[task.trained[places]]
        trained = trained[np.argsort(task.times[trained], kind="stable")]
        before = np.searchsorted(task.times[trained], task.times[places], side="left")
        count[places] = before
        ratings[places] = np.append(0, np.cumsum(task.ratings[trained]))[before]
        likes[places] = np.append(0, np.cumsum(task.likes[trained]))[before]
    return ItemStatistics(count, ratings, likes, task)


def _others(task: Task) -> ItemStatistics:
    """Training events of the other folds' users; of an event that did not train, of everyone."""
    fold = np.random.default_rng(0).integers(FOLDS, size=len(task.offsets) - 1)[task.users]
    fold = np.where(task.trained, fold, FOLDS)
    columns = (np.ones(len(task.items)), task.ratings, task.likes)
    sums = []
    for column in columns:
        own = np.zeros((FOLDS + 1, task.num_items))
        np.add.at(own, (fold[task.trained], task.items[task.trained]), column[task.trained])
        sums.append((own.sum(axis=0) - own)[fold, task.items])
    return ItemStatistics(*sums, task)


STATISTICS: dict[str, Callable[[Task], ItemStatistics]] = {"past": _past, "others": _others}


def _item_features(task: Task, items: ItemStatistics) -> dict[str, Floats]:
    counts = np.bincount(task.items[task.trained], minlength=task.num_items)
    levels, place = np.unique(counts, return_inverse=True)
    popularity = (counts < levels[:, None]).mean(axis=1)[place]
    year = task.years[task.items]
    asked = task.times / (365.25 * 24 * HOUR) + 1970
    return {
        "item_rating": items.rating,
        "item_like": items.like,
        "item_count": np.log1p(items.count),
        "item_popularity": popularity[task.items],
        "item_age": asked - year,
        "item_year": year,
    }


def _user_features(task: Task, items: ItemStatistics) -> dict[str, Floats]:
    """Means over the user's events before; a residual is a rating less its item's mean."""
    residuals = task.ratings - items.rating
    position = _positions(task).astype(np.float64)
    features = {
        "user_count": np.log1p(position),
        "user_rating": _mean_before(task, task.ratings, items.mean_rating),
        "user_like": _mean_before(task, task.likes, items.mean_like),
        "user_residual": _mean_before(task, residuals, 0.0),
        "user_square": _mean_before(task, residuals**2, 1.0),
        "user_taste": _mean_before(
            task, np.log1p(items.count), float(np.log1p(items.count).mean())
        ),
        "last_rating": _shifted(task, task.ratings, 1),
        "last_residual": _shifted(task, residuals, 1),
        "last_item_like": _shifted(task, items.like, 1),
    }
    for half_life in HALF_LIVES:
        features[f"recent_like_{half_life:g}"] = _decayed(task, task.likes, half_life)
        features[f"recent_residual_{half_life:g}"] = _decayed(task, residuals, half_life)
    for width in LAST:
        features[f"last_{width}_residual"] = _mean_of_last(task, residuals, width)
    features["expected"] = items.rating + features["user_residual"]
    features["expected_now"] = items.rating + features["recent_residual_15"]
    return features


def _genre_features(task: Task, items: ItemStatistics) -> dict[str, Floats]:
    """How the user took to the candidate's genres, and the genres themselves."""
    own = task.genres[task.items]
    residuals = task.ratings - items.rating
    residuals -= _mean_before(task, residuals, 0.0)
    counts = _sums_before(task, own)
    sums = _sums_before(task, own * residuals[:, None])
    likes = _sums_before(task, own * task.likes[:, None])
    shared = own.sum(axis=1).clip(1)
    closest = own * (sums / (counts + PRIOR))
    features = {
        "genre_residual": closest.sum(axis=1) / shared,
        "genre_best": closest.max(axis=1),
        "genre_worst": closest.min(axis=1),
        "genre_like": (own * (likes + PRIOR * items.mean_like) / (counts + PRIOR)).sum(axis=1)
        / shared,
        "genre_share": (own * counts).sum(axis=1) / shared / (_positions(task) + 1),
    }
    return features | {f"genre_{number}": column for number, column in enumerate(own.T)}


def _time_features(task: Task) -> dict[str, Floats]:
    gap = np.log1p((task.times - _shifted(task, task.times, 1)).clip(0))
    started = _first_of_session(task, gap > np.log1p(HOUR))
    return {
        "gap": gap,
        "since_first": np.log1p(task.times - task.times[task.offsets[:-1]][task.users]),
        "in_session": np.log1p(_positions(task) - started),
        "hour": task.times / HOUR % 24,
        "weekday": task.times // (24 * HOUR) % 7,
    }


def _person_features(task: Task) -> dict[str, Floats]:
    age, gender, occupation = task.people[task.users].T
    return {"age": age, "gender": gender, "occupation": occupation}


def _positions(task: Task) -> Ints:
    return np.arange(len(task.items)) - task.offsets[:-1][task.users]


def _sums_before(task: Task, values: Floats) -> Floats:
    """(N, ...) sum over the user's events before each event."""
    total = np.cumsum(values, axis=0) - values
    return total - total[task.offsets[:-1]][task.users]


def _mean_before(task: Task, values: Floats, prior: float) -> Floats:
    return (_sums_before(task, values) + PRIOR * prior) / (_positions(task) + PRIOR)


def _shifted(task: Task, values: Floats | Ints, steps: int) -> Floats:
    """(N,) the user's value so many events before; NaN where there is none."""
    moved = np.full(len(values), np.nan)
    moved[steps:] = values[:-steps]
    return np.where(_positions(task) >= steps, moved, np.nan)


def _mean_of_last(task: Task, values: Floats, width: int) -> Floats:
    """(N,) mean over up to ``width`` events before."""
    total = np.append(0, np.cumsum(values))
    count = np.minimum(_positions(task), width)
    place = np.arange(len(values))
    return (total[place] - total[place - count]) / count.clip(1)


def _decayed(task: Task, values: Floats, half_life: float) -> Floats:
    """(N,) mean of the values before, each worth half of one ``half_life`` events later."""
    keep = 0.5 ** (1 / half_life)
    means, first = np.full(len(values), np.nan), set(task.offsets[:-1].tolist())
    total = weight = 0.0
    for place, value in enumerate(values.tolist()):
        if place in first:
            total = weight = 0.0
        else:
            means[place] = total / weight
        total, weight = keep * total + value, keep * weight + 1
    return means


def _first_of_session(task: Task, begins: np.ndarray) -> Ints:
    """(N,) position of the event that began the session; ``begins`` marks long gaps."""
    positions = _positions(task)
    starts = np.where(begins | (positions == 0), np.arange(len(positions)), 0)
    return positions[np.maximum.accumulate(starts)]
