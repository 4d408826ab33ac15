"""Fits a memory on training events: transitions and gates by expectation maximisation.

Every training event is a question with up to E earlier events as its possible causes. A step
credits it to the base rate, to each earlier event by transition, and to each by revisit, in
proportion to their parts of its probability. The credits by pair of items give the transitions; the
gates follow the gradient of the likelihood. This is the expectation maximisation of a Hawkes
process (Veen & Schoenberg 2008, doi:10.1198/016214507000001148).

A transition that is fitted on an event predicts this event too well. So the users are divided into
folds, and the probability of an event uses the credits of the other folds alone. Only the credits
of pairs of items that occur are stored, so memory and time grow with the number of events.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from llm_influence.config.model import MemoryConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.gates import AGE, BEHAVIOR, DISTANCE, ITEM, VALUE, Places
from llm_influence.modeling.item_links import ItemLinks
from llm_influence.modeling.memory import Memory
from llm_influence.modeling.transitions import fit_associations
from llm_influence.rendering.encoder import NO_ITEM, RECORD
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.types import IntArray

logger = logging.getLogger(__name__)

MOST_ITEMS = 20_000
"""Largest catalogue for which associations are solved: time grows with the cube of it."""
MOST_PAIRS = 20_000_000
"""Most pairs of an event and an earlier one; of a longer log, a sample of the events is read."""
ROUNDS, STEPS = 15, 40
"""Rounds of expectation maximisation, and gradient steps on the gates in each."""
TRIED_PAIRS, TRIED_ROUNDS = 1_000_000, 6
"""Pairs and rounds with which the end of the ages is chosen."""
PSEUDO_COUNT = 0.5
"""Events that are added to those of every item in the base rate."""
PRIORS = (5.0, 1.0, 20.0)
"""Credits that a row gives to no item; the likelihood chooses."""
STEP_QUESTIONS = 1024
"""Questions of a gradient step."""
BATCH = 4096
SAMPLE = 20_000
SMOOTHING = 1e-4
"""Weight of the roughness of the gates, beside the mean log-likelihood of a question."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Q training events, each with up to E earlier events of its user.

    Attributes:
        records: (Q, E, 5) records of the earlier events, the latest first; item `NO_ITEM` where
            there are fewer.
        targets: (Q,) item codes of the events themselves.
        folds: (Q,) fold of the user.
    """

    records: IntArray
    targets: IntArray
    folds: IntArray


def questions(
    log: BehaviorLog,
    vocabulary: Vocabulary,
    *,
    most: int,
    reach: int,
    folds: int,
    seed: int,
    to_query: bool,
) -> Questions:
    """The training events of a log as questions.

    Args:
        log: Training events.
        vocabulary: Gives the value bins.
        most: Most questions; of a longer log, a random sample is read.
        reach: Number of earlier events E.
        folds: Number of folds of users.
        seed: Of the folds, and of the sample of a longer log.
        to_query: Ages count back from the event itself; otherwise from the event before it.
    """
    generator = np.random.default_rng(seed)
    positions = log.positions()
    events = np.flatnonzero(positions > 0)
    if len(events) > most:
        events = np.sort(generator.choice(events, most, replace=False))
    back = np.arange(1, reach + 1)
    places = events[:, None] - back
    real = back <= positions[events][:, None]
    places = np.where(real, places, 0)
    until = log.timestamps[events if to_query else events - 1]
    ages = np.where(real, until[:, None] - log.timestamps[places], 0)
    columns = {
        ITEM: np.where(real, log.items[places], NO_ITEM),
        BEHAVIOR: log.behaviors[places],
        VALUE: vocabulary.values.codes(log.values)[places],
        AGE: ages,
        DISTANCE: np.broadcast_to(back - 1, places.shape),
    }
    records = np.stack([columns[n] for n in range(len(RECORD))], axis=-1).astype(np.int64)
    fold = generator.integers(folds, size=len(log))[log.rows_of_users()[events]]
    return Questions(records, log.items[events].astype(np.int64), fold)


class Credits:
    """Credits of the pairs of items in the questions, by fold.

    Args:
        asked: The questions.
        items: Number of items I.
        folds: Number of folds.
    """

    def __init__(self, asked: Questions, items: int, folds: int) -> None:
        sources = asked.records[..., ITEM]
        self.real = sources != NO_ITEM
        keys = np.where(self.real, sources, 0) * items + asked.targets[:, None]
        self.pairs, pair = np.unique(keys[self.real], return_inverse=True)
        self.items, self.sources = items, self.pairs // items
        fold = np.broadcast_to(asked.folds[:, None], sources.shape)[self.real]
        self.by_fold, self.slot = np.unique(pair * folds + fold, return_inverse=True)
        self.pair, self._fold = self.by_fold // folds, self.by_fold % folds
        self._folds = folds

    def rates(self, credit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Credits of the other folds for every real pair: of the pair, and of its row.

        Their quotient is the transition fitted on the other folds.

        Args:
            credit: Credit of every real pair of an event and an earlier one.
        """
        own = np.bincount(self.slot, credit, minlength=len(self.by_fold))
        whole = np.bincount(self.pair, own, minlength=len(self.pairs))
        source = self.sources[self.pair]
        cell = source * self._folds + self._fold
        of_fold = np.bincount(cell, own, minlength=self.items * self._folds)
        row = of_fold.reshape(self.items, self._folds).sum(axis=1)
        others = (row[source] - of_fold[cell]).clip(min=0).astype(np.float32)
        apart = (whole[self.pair] - own).clip(min=0).astype(np.float32)
        return apart[self.slot], others[self.slot]

    def matrix(self, credit: np.ndarray, prior: float, neighbors: int) -> csr_array:
        """(I, I) transitions fitted on all folds, the strongest ``neighbors`` of each row."""
        own = np.bincount(self.slot, credit, minlength=len(self.by_fold))
        whole = np.bincount(self.pair, own, minlength=len(self.pairs))
        row = np.bincount(self.sources, whole, minlength=self.items)
        values = whole / (row[self.sources] + prior)
        return strongest(
            csr_array((values, (self.sources, self.pairs % self.items)), (self.items, self.items)),
            neighbors,
        )


def strongest(matrix: csr_array, neighbors: int) -> csr_array:
    """The same matrix with only the largest absolute values of each row; zeros are left out."""
    matrix = csr_array(matrix)
    matrix.eliminate_zeros()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -np.abs(matrix.data), row))
    place = np.arange(len(order)) - matrix.indptr[row]
    kept = order[place < neighbors]
    parts = (matrix.data[kept], (row[kept], matrix.indices[kept]))
    kept_matrix = csr_array(parts, shape=matrix.shape)
    kept_matrix.sort_indices()
    return kept_matrix


def fit_memory(
    log: BehaviorLog, vocabulary: Vocabulary, config: MemoryConfig, *, reach: int, seed: int = 0
) -> Memory:
    """A memory of the training events.

    Args:
        log: Training events.
        vocabulary: Codes of the fields.
        config: Options of the memory.
        reach: Largest number of earlier events of a question.
        seed: Of folds and samples.
    """
    ends = {"last_event": (False,), "query": (True,), "auto": (False, True)}[config.ages]
    fit = partial(_fit, log, vocabulary, config, reach=reach, seed=seed)
    to_query = ends[0]
    if len(ends) > 1:
        tried = [fit(to_query=end, pairs=TRIED_PAIRS, rounds=TRIED_ROUNDS)[1] for end in ends]
        to_query = ends[int(np.argmax(tried))]
    memory, likelihood = fit(to_query=to_query)
    logger.info(
        "memory: %s transitions, ages to the %s, mean log-probability %.4f",
        f"{len(memory.transitions.codes):,}",
        "query time" if memory.to_query else "last event",
        likelihood,
    )
    if config.associations and len(vocabulary.catalogue) <= MOST_ITEMS:
        matrix, decay = fit_associations(log, neighbors=config.neighbors, seed=seed)
        memory.associations = ItemLinks.of(matrix)
        memory.decay.fill_(decay)
    return memory


def _fit(
    log: BehaviorLog,
    vocabulary: Vocabulary,
    config: MemoryConfig,
    *,
    reach: int,
    seed: int,
    to_query: bool,
    pairs: int = MOST_PAIRS,
    rounds: int = ROUNDS,
) -> tuple[Memory, float]:
    """A memory without associations, and the mean log-probability of the questions."""
    items, generator = len(vocabulary.catalogue), torch.Generator().manual_seed(seed)
    asked = questions(
        log,
        vocabulary,
        most=max(1, pairs // reach),
        reach=reach,
        folds=config.folds,
        seed=seed,
        to_query=to_query,
    )
    credits = Credits(asked, items, config.folds)
    real = torch.from_numpy(asked.records[credits.real])
    chosen = torch.randperm(len(real), generator=generator)[:SAMPLE]
    memory = Memory(
        ItemLinks(items, 0),
        ItemLinks(items, 0),
        behaviors=vocabulary.behaviors,
        values=len(vocabulary.values.edges) + 1,
        sample=len(chosen),
    )
    counts = np.bincount(log.items, minlength=items) + PSEUDO_COUNT
    memory.popularity.copy_(torch.from_numpy(counts / counts.sum()))
    memory.sample.copy_(real[chosen])
    memory.to_query.fill_(to_query)
    if not len(asked.targets):
        return memory, 0.0
    with torch.enable_grad():
        credit, prior, likelihood = _maximise(memory, asked, credits, generator, rounds)
    memory.transitions = ItemLinks.of(credits.matrix(credit, prior, config.neighbors))
    return memory, likelihood


class Evidence:
    """The questions as the likelihood reads them, and the transitions that other folds give them.

    Args:
        asked: The questions.
        credits: Sums the credits of pairs of items.
        popularity: (I,) base rate of the items.
    """

    def __init__(self, asked: Questions, credits: Credits, popularity: Tensor) -> None:
        records = torch.from_numpy(asked.records)
        self.places = Places.of(records)
        self.targets = torch.from_numpy(asked.targets)
        self.same = records[..., ITEM] == self.targets[:, None]
        self.exists = torch.from_numpy(credits.real).float()
        self.base = popularity[self.targets]
        self._credits = credits
        self._filled = self.exists.flatten().nonzero().squeeze(1)
        self._pair, self._row = torch.zeros(2, *self.exists.shape)
        self.prior = PRIORS[0]

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.targets)

    def learn(self, credit: np.ndarray) -> None:
        """Set the transitions to those of the credits of all real pairs."""
        for sums, values in zip((self._pair, self._row), self._credits.rates(credit), strict=True):
            sums.view(-1)[self._filled] = torch.from_numpy(values)

    def parts(self, memory: Memory, rows: Tensor | slice) -> tuple[Tensor, ...]:
        """Parts of the probabilities of questions.

        Returns:
            (Q,) base rate of the target; (Q, E) what each event adds by transition, and by
            revisit; (Q,) what all of them add to all items.
        """
        exists = self.exists[rows]
        causes, repeats = memory.rates_at(self.places[rows], exists, exists)
        row = self._row[rows]
        caused = causes * self._pair[rows] / (row + self.prior)
        mass = (causes * row / (row + self.prior) + repeats).sum(dim=1)
        return self.base[rows], caused, repeats * self.same[rows], mass

    def likelihood(self, memory: Memory, rows: Tensor | slice) -> Tensor:
        """(Q,) log-probabilities of the targets of questions."""
        base, caused, repeated, mass = self.parts(memory, rows)
        return (base + (caused + repeated).sum(dim=1)).log() - mass.log1p()

    def batches(self) -> Iterator[slice]:
        """All questions, some at a time."""
        for start in range(0, len(self), BATCH):
            yield slice(start, start + BATCH)

    @torch.no_grad()
    def credit(self, memory: Memory) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the targets credited to transitions, a real pair each, and (Q,) to the base."""
        shares, rest = [], []
        for rows in self.batches():
            base, caused, repeated, _ = self.parts(memory, rows)
            total = base + (caused + repeated).sum(dim=1)
            shares.append((caused / total[:, None])[self.exists[rows] > 0])
            rest.append(base / total)
        return torch.cat(shares).double().numpy(), torch.cat(rest).double().numpy()


def _maximise(
    memory: Memory, asked: Questions, credits: Credits, generator: torch.Generator, rounds: int
) -> tuple[np.ndarray, float, float]:
    """Fit the gates of a memory.

    Returns:
        The credit of every real pair, the prior, and the mean log-probability of the questions.
    """
    evidence = Evidence(asked, credits, memory.popularity)
    gates = [p for p in memory.parameters() if p.is_floating_point()]
    for parameter in gates:
        parameter.requires_grad_()
    shared = [memory.amounts, memory.rivalry]
    tables = [p for p in gates if all(p is not other for other in shared)]
    optimizer = torch.optim.Adam([{"params": tables, "lr": 0.1}, {"params": shared, "lr": 0.5}])
    rates_of = [group["lr"] for group in optimizer.param_groups]
    sample = torch.randperm(len(evidence), generator=generator)[: 4 * BATCH]

    def likelihood(prior: float) -> float:
        evidence.prior = prior
        with torch.no_grad():
            return float(evidence.likelihood(memory, sample).mean())

    credit = 1 / (1.0 + asked.records[..., DISTANCE][credits.real])
    for number in range(rounds):
        evidence.learn(credit)
        if number >= 2 and number % 2 == 0:
            evidence.prior = max(PRIORS, key=likelihood)
        for group, rate_of in zip(optimizer.param_groups, rates_of, strict=True):
            group["lr"] = rate_of * (1 - number / rounds)
        for _ in range(STEPS):
            count = min(STEP_QUESTIONS, len(evidence))
            rows = torch.randint(len(evidence), (count,), generator=generator)
            rough = memory.excitation.roughness() + memory.revisit.roughness()
            optimizer.zero_grad()
            (SMOOTHING * rough - evidence.likelihood(memory, rows).mean()).backward()
            optimizer.step()
        credit, rest = evidence.credit(memory)
        counts = np.bincount(asked.targets, rest, minlength=memory.items) + PSEUDO_COUNT
        memory.popularity.copy_(torch.from_numpy(counts / counts.sum()))
        evidence.base = memory.popularity[evidence.targets]
    for parameter in gates:
        parameter.requires_grad = False
        parameter.grad = None
    with torch.no_grad():
        value = sum(float(evidence.likelihood(memory, rows).sum()) for rows in evidence.batches())
    return credit, evidence.prior, value / max(1, len(evidence))
