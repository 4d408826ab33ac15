"""Random draws of training: removed events, augmented views of windows, and negative items.

A draw depends on the seed, the epoch and the window alone (negatives: on the seed and the step), so
it is the same in every batch, process and resumed run.
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
    """Removes random events from the input of training windows.

    A ``share`` of the windows loses events: each draws a probability from [0, ``rate``], and every
    event is removed with it. The other windows stay whole, as predictions come from whole
    histories. So the model has seen removals of every size, which attribution asks for.

    Args:
        rate: Highest probability of removal, in [0, 1]; 0 keeps all windows whole.
        share: Share of the windows that lose events, in [0, 1].
        seed: Seed of the draws.
    """

    def __init__(self, rate: float = 0.0, share: float = 0.5, *, seed: int = 0) -> None:
        self.rate, self.share, self.seed = rate, share, seed

    def kept(self, events: int, *, epoch: int, user: int, start: int) -> BoolArray:
        """(E,) bool, True for events that stay.

        Args:
            events: Number E of events of the window.
            epoch: Number of the epoch, from 0.
            user: Number of the user in the training log.
            start: Position of the window's first event.
        """
        if self.rate == 0:
            return np.ones(events, dtype=bool)
        draw = np.random.default_rng([self.seed, epoch, user, start])
        probability = self.rate * draw.random() if draw.random() < self.share else 0.0
        return draw.random(events) >= probability


def events_before(kept: BoolArray, hidden: BoolArray | None = None) -> npt.NDArray[np.int64]:
    """(E + 1,) number of visible events before each event, and before the one after the window.

    An event is predicted from the last visible event before it. This is the number of that event
    among the kept events, from 1; 0 is the prompt.

    Args:
        kept: (E,) bool, events that are rendered.
        hidden: (E,) bool, rendered events that attention cannot see; default: none.
    """
    number = np.cumsum(kept)
    if hidden is not None:
        number = np.maximum.accumulate(np.where(kept & ~hidden, number, 0))
    return np.concatenate([[0], number])


class Negatives:
    """Draws one set of items for each optimiser step, shared by all of its positions.

    Each item is drawn independently with its probability of inclusion, ``min(1, negatives x
    proposal)``. So no item is drawn twice and the probability is exact. All processes and
    micro-batches of a step have the same set. If all probabilities are 1, it is the catalogue.

    Args:
        proposal: (I,) positive weights; they are normalised.
        negatives: Expected size of the set, before probabilities are cut at 1.
        seed: Seed of the run.

    Attributes:
        inclusion: (I,) float32 probability of inclusion.
    """

    def __init__(self, proposal: FloatArray, negatives: int, *, seed: int = 0) -> None:
        self._probabilities = np.minimum(1.0, negatives * (proposal / proposal.sum()))
        self._seed = seed
        self.inclusion = torch.from_numpy(self._probabilities.astype(np.float32))

    def draw(self, step: int) -> Tensor:
        """(K,) item codes of one optimiser step, in increasing order."""
        coins = np.random.default_rng([self._seed, step]).random(len(self._probabilities))
        return torch.from_numpy(np.flatnonzero(coins < self._probabilities))


def half_popular(items: IntArray, num_items: int) -> FloatArray:
    """(I,) proposal: one half by popularity among the (N,) items of training, one half uniform.

    Popular items are hard negatives. The uniform half also lowers the scores of unseen items.
    """
    counts = np.bincount(items, minlength=num_items)
    return 0.5 * counts / max(1, counts.sum()) + 0.5 / num_items


def drawn_items(config: RunConfig, catalogue: Catalogue, log: BehaviorLog) -> Negatives | None:
    """The negatives of the item loss; None for the full loss. gBCE needs a uniform proposal."""
    head, items = config.model.item_head, len(catalogue)
    loss = head.loss_for(items)
    if loss == "full":
        return None
    uniform = np.full(items, 1 / items)
    proposal = uniform if loss == "gbce" else half_popular(log.items, items)
    return Negatives(proposal, head.negatives, seed=config.train.seed)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One view of a window of E events and the event after it.

    Attributes:
        shown: (M,) the window's events in the view, in their order there.
        after: The event after them, which is only a label.
        hidden: (M,) bool, shown events that attention cannot see: removal ``mask``.
        template: Number of the template, 0 for the model's own.
    """

    shown: IntArray
    after: int
    hidden: BoolArray
    template: int = 0

    @classmethod
    def whole(cls, events: int) -> View:
        """The unchanged window."""
        return cls(np.arange(events), events, np.zeros(events, dtype=bool))

    def of(self, window: History) -> History:
        """The M shown events and the one after them, from the E + 1 events of a window.

        Timestamps stay in increasing order when events change places.
        """
        changed = window.keep(np.append(self.shown, self.after))
        return replace(changed, timestamps=np.sort(changed.timestamps))


class Views:
    """Draws augmented views of windows: crop, mask, reorder (CL4SRec), or another template.

    The kinds are those of Xie et al. 2022 (arXiv:2010.14395) and paraphrase by template. The
    labels are always the events of the view itself.

    Args:
        config: Kinds and strengths; default: no augmentation.
        seed: Seed of the draws.
    """

    def __init__(self, config: AugmentationConfig | None = None, *, seed: int = 0) -> None:
        self.config, self.seed = config or AugmentationConfig(), seed
        self._kinds = self.config.kinds

    def trained(self, events: int, *, epoch: int, user: int, start: int) -> View:
        """The view of a window of E events that trains the heads, augmented in a share of draws."""
        if not self._kinds or not self.config.share:
            return View.whole(events)
        draw = self._generator(epoch, user, start, view=0)
        changed = draw.random() < self.config.share
        return self._changed(events, draw) if changed else View.whole(events)

    def pair(self, events: int, *, epoch: int, user: int, start: int) -> tuple[View, View]:
        """Two augmented views of a window for the contrastive loss."""
        first, second = (self._generator(epoch, user, start, view=view) for view in (1, 2))
        return self._changed(events, first), self._changed(events, second)

    def _generator(self, epoch: int, user: int, start: int, *, view: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, user, start, 1 + view])

    def _changed(self, events: int, draw: np.random.Generator) -> View:
        kind = self._kinds[draw.integers(len(self._kinds))]
        if kind == "templates":
            template = int(draw.integers(1 + len(self.config.templates)))
            return replace(View.whole(events), template=template)
        most = max(0, events - (kind != "reorder"))  # crop and mask leave an event
        touched = min(round(getattr(self.config, kind) * events), most)
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
    """Encoders with the same fields in the words of other templates.

    Raises:
        ConfigError: A template is missing, or has other fields than the model's own.
    """
    encoders = []
    for name in templates:
        try:
            encoders.append(encoder.with_template(Template.load(name)))
        except TemplateError as error:
            raise ConfigError(
                error.found,
                where=f"train.augmentation.templates, {name!r}",
                expected=error.expected,
                fix=error.fix,
            ) from error
    return encoders
