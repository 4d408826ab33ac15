"""Which factors foretell influence, without a form assumed: boosted trees and shuffled columns.

Trees learn the response from the factors on half of the users; on the other half one factor after
another is shuffled, and what the error grows by is its importance (Breiman 2001,
doi:10.1023/A:1010933404324; Fisher, Rudin and Dominici 2019, arXiv:1801.01489). Partial dependence
(Friedman 2001, doi:10.1214/aos/1013203451) is the trees' mean prediction with all events moved to
one level. Both take a sample of whole users, so that memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from llm_influence.analysis.event_cells import Batch, CodedEvents
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.types import FloatArray

REPEATS = 5
MOST_DEPENDENCE = 10_000
"""Events that partial dependence averages over; its mean is sharp long before."""
DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """What the trees make of the factors.

    Attributes:
        shares: (F, 3) growth of the squared error when a factor is shuffled, as a share of the
            response's variance, with the ends of its 95% bootstrap interval over users.
        r_squared: Share of the variance that the trees foretell for users they have not seen.
        dependence: F arrays (L,) mean prediction at each level, against the mean over all events.
        events: Of the sample, both halves.
        users: Of the sample.
    """

    shares: FloatArray
    r_squared: float
    dependence: list[FloatArray]
    events: int
    users: int


def permutation_importance(coded: CodedEvents, *, most: int, seed: int) -> Importance:
    """Learn on half of a sample of users, shuffle on the other half.

    Args:
        coded: The events.
        most: Events of the sample, about.
        seed: Of the sample, the trees and the shuffles.
    """
    random = np.random.default_rng(seed)
    view = coded.view
    wanted = max(4, int(view.users * min(1.0, most / view.events)))
    users = random.permutation(view.users)[:wanted]
    learned = coded.of_users(users[: wanted // 2])
    asked = coded.of_users(users[wanted // 2 :])
    trees = HistGradientBoostingRegressor(
        categorical_features=np.ones(len(coded.factors), dtype=bool),
        early_stopping=False,
        random_state=seed,
    )
    trees.fit(learned.codes, learned.response)
    variance = float(asked.response.var())
    loss = (trees.predict(asked.codes) - asked.response) ** 2
    shares = [
        _share(trees, asked, place, loss, variance, random) for place in range(len(coded.factors))
    ]
    return Importance(
        np.array(shares),
        1 - float(loss.mean()) / variance if variance else 0.0,
        _dependence(trees, asked, [len(factor.levels) for factor in coded.factors]),
        len(learned.response) + len(asked.response),
        wanted,
    )


def _share(
    trees: HistGradientBoostingRegressor,
    asked: Batch,
    place: int,
    loss: FloatArray,
    variance: float,
    random: np.random.Generator,
) -> tuple[float, float, float]:
    growth, codes = np.zeros(len(loss)), asked.codes.copy()
    for _ in range(REPEATS):
        codes[:, place] = random.permutation(asked.codes[:, place])
        growth += ((trees.predict(codes) - asked.response) ** 2 - loss) / REPEATS
    if not variance:
        return 0.0, 0.0, 0.0
    groups = np.unique(asked.user, return_inverse=True)[1]
    low, high = bootstrap_interval(growth / variance, groups, draws=DRAWS)
    return float(growth.mean()) / variance, low, high


def _dependence(
    trees: HistGradientBoostingRegressor, asked: Batch, sizes: list[int]
) -> list[FloatArray]:
    found: list[FloatArray] = []
    events = asked.codes[:: -(-len(asked.codes) // MOST_DEPENDENCE)]
    whole = float(trees.predict(events).mean())
    for place, size in enumerate(sizes):
        codes, means = events.copy(), np.zeros(size)
        for level in range(size):
            codes[:, place] = level
            means[level] = trees.predict(codes).mean() - whole
        found.append(means)
    return found
