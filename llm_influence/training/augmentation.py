"""Histories with events removed, so that what explanation asks is nothing strange to the model.

Items that a training step learns to tell the right ones from, where it cannot take them all.

Windows shown in another way: cut, with events hidden, in another order, in other words.

The kinds are those of CL4SRec (Xie et al. 2022, arXiv:2010.14395), and paraphrase by template.
Whatever is shown, the labels are those of the view's own events: each is asked from the state
after the events that the view shows before it, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_influence.config.run import RunConfig
from llm_influence.config.training import AugmentationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, TemplateError
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.types import BoolArray, FloatArray, History, IntArray


class EventDropout:
    """Draws which events of a training window stay in its input.

    A ``share`` of the windows loses events; each of these draws its own chance from [0, ``rate``],
    then every event is left out by that chance. The other windows stay whole: predictions are
    made from whole histories. Drawing the chance anew shows the model removals of every size, as
    attribution asks them, from one event to nearly all.

    A draw depends on the seed, the epoch and the window alone, never on its batch or process.

    Args:
        rate: The highest chance that an event is left out, in [0, 1]; 0 leaves all windows whole.
        share: Of the windows that lose events, in [0, 1].
        seed: Of all draws.
    """

    def __init__(self, rate: float = 0.0, share: float = 0.5, *, seed: int = 0) -> None:
        self.rate, self.share, self.seed = rate, share, seed

    def kept(self, events: int, *, epoch: int, user: int, start: int) -> BoolArray:
        """(E,) bool, True where an event of the window stays.

        Args:
            events: Events E of the window.
            epoch: From 0.
            user: The user's number in the training log.
            start: The window's first event.
        """
        if self.rate == 0:
            return np.ones(events, dtype=bool)
        draw = np.random.default_rng([self.seed, epoch, user, start])
        chance = self.rate * draw.random() if draw.random() < self.share else 0.0
        return draw.random(events) >= chance


def events_before(kept: BoolArray, hidden: BoolArray | None = None) -> npt.NDArray[np.int64]:
    """(E + 1,) for each event and the one after the window, the number of the event asked at.

    An event is predicted from the state after the last event before it that can be seen; this is
    that one's number among the kept events, counted from 1, and 0 is the prompt.

    Args:
        kept: (E,) bool, events that are rendered.
        hidden: (E,) bool, events that are rendered and hidden from attention; default: none.
    """
    number = np.cumsum(kept)
    if hidden is not None:
        number = np.maximum.accumulate(np.where(kept & ~hidden, number, 0))
    return np.concatenate([[0], number])


class Negatives:
    """One set of items for each optimiser step, shared by all of its positions.

    Every item has its own coin: it is in the set with its probability of inclusion
    ``min(1, negatives x proposal)``. So no item is drawn twice, that probability is exact, and
    the set depends on the seed and the step alone: it is the same in every process and
    micro-batch. Where all probabilities are one, the set is the catalogue.

    Args:
        proposal: (I,) positive weights, normalised here.
        negatives: Size of the set, on average (less where a popular item's probability is cut).
        seed: Of the run.

    Attributes:
        inclusion: (I,) float32 probability that an item is in a step's set.
    """

    def __init__(self, proposal: FloatArray, negatives: int, *, seed: int = 0) -> None:
        self._chances = np.minimum(1.0, negatives * (proposal / proposal.sum()))
        self._seed = seed
        self.inclusion = torch.from_numpy(self._chances.astype(np.float32))

    def draw(self, step: int) -> Tensor:
        """(K,) codes of the items of one optimiser step, in order."""
        coins = np.random.default_rng([self._seed, step]).random(len(self._chances))
        return torch.from_numpy(np.flatnonzero(coins < self._chances))


def half_popular(items: IntArray, num_items: int) -> FloatArray:
    """(I,) weights: half of a set by popularity among the (N,) items of training, half evenly.

    The popular half holds the items that are hard to tell apart, the other half reaches those
    that no one has met, whose scores nothing else would keep down.
    """
    counts = np.bincount(items, minlength=num_items)
    return 0.5 * counts / max(1, counts.sum()) + 0.5 / num_items


def drawn_items(config: RunConfig, catalogue: Catalogue, log: BehaviorLog) -> Negatives | None:
    """What a loss that draws draws from: gBCE is about even draws, see docs/large_catalogues.md."""
    head, items = config.model.item_head, len(catalogue)
    loss = head.loss_for(items)
    if loss == "full":
        return None
    even = np.full(items, 1 / items)
    proposal = even if loss == "gbce" else half_popular(log.items, items)
    return Negatives(proposal, head.negatives, seed=config.train.seed)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One way of showing a window of E events and the one after it.

    Attributes:
        shown: (M,) the window's events that are shown, in the order in which.
        after: The event after those, which is a label alone.
        hidden: (M,) bool, shown events that are hidden from attention: removal ``mask``.
        template: Number of the template, 0 for the model's own.
    """

    shown: IntArray
    after: int
    hidden: BoolArray
    template: int = 0

    @classmethod
    def whole(cls, events: int) -> View:
        """The window as it is."""
        return cls(np.arange(events), events, np.zeros(events, dtype=bool))

    def of(self, window: History) -> History:
        """The M events shown and the one after them, from the E + 1 of a window.

        Events that change places change times too: time never runs backwards.
        """
        changed = window.keep(np.append(self.shown, self.after))
        return replace(changed, timestamps=np.sort(changed.timestamps))


class Views:
    """Draws how windows are shown.

    A draw depends on the seed, the epoch, the window and the view's number alone, never on its
    batch or process.

    Args:
        config: The kinds and their strengths; default: windows are shown as they are.
        seed: Of all draws.
    """

    def __init__(self, config: AugmentationConfig | None = None, *, seed: int = 0) -> None:
        self.config, self.seed = config or AugmentationConfig(), seed
        self._kinds = self.config.kinds

    def trained(self, events: int, *, epoch: int, user: int, start: int) -> View:
        """How a window of so many events is shown to the heads: changed in a share of the cases."""
        if not self._kinds or not self.config.share:
            return View.whole(events)
        draw = self._generator(epoch, user, start, view=0)
        return (
            self._changed(events, draw) if draw.random() < self.config.share else View.whole(events)
        )

    def pair(self, events: int, *, epoch: int, user: int, start: int) -> tuple[View, View]:
        """Two ways of showing a window for the contrastive loss, both changed."""
        first, second = (self._generator(epoch, user, start, view=view) for view in (1, 2))
        return self._changed(events, first), self._changed(events, second)

    def _generator(self, epoch: int, user: int, start: int, *, view: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, user, start, 1 + view])

    def _changed(self, events: int, draw: np.random.Generator) -> View:
        kind = self._kinds[draw.integers(len(self._kinds))]
        if kind == "templates":
            template = int(draw.integers(1 + len(self.config.templates)))
            return replace(View.whole(events), template=template)
        touched = min(
            round(getattr(self.config, kind) * events), max(0, events - (kind != "reorder"))
        )
        if kind == "crop":
            start = int(draw.integers(touched + 1))
            stop = start + events - touched
            return View(np.arange(start, stop), stop, np.zeros(stop - start, dtype=bool))
        view = View.whole(events)
        if kind == "mask":
            view.hidden[draw.permutation(events)[:touched]] = True
        else:
            start = int(draw.integers(events - touched + 1))
            draw.shuffle(view.shown[start : start + touched])
        return view


def paraphrases(encoder: Encoder, templates: Sequence[str]) -> list[Encoder]:
    """Encoders that say the same in the words of other templates.

    Raises:
        ConfigError: A template is not there, or does not say what the model's own says.
    """
    found = []
    for name in templates:
        try:
            found.append(encoder.with_template(Template.load(name)))
        except TemplateError as error:
            raise ConfigError(
                error.found,
                where=f"train.augmentation.templates, {name!r}",
                expected=error.expected,
                fix=error.fix,
            ) from error
    return found
