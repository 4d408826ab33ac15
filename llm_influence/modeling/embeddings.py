"""Embeddings: vectors of the items and of the other tokens of style ``token``; text vectors.

``vector(v) = project(words(v)) + residual(v)``

``words`` are text vectors of the untuned backbone and are never trained, ``project`` is one matrix
for all tokens, and ``residual`` starts at zero. A recurrent backbone has no text vectors, so a
vector is its residual, which starts at random. In a large catalogue a residual is
``widen(narrow residual)`` (docs/decisions/0007-narrow-residuals.md). With neighbours
(`Embeddings.mix`) a vector is a weighted sum of such vectors: its own and those of items that
share entities of a knowledge graph.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.errors import ModelError, ModelFolderError, unreadable
from llm_influence.modeling.backbone import Backbone
from llm_influence.modeling.conditioning import directions, whitening_of
from llm_influence.utils import write_whole

SHARD = 16_384
"""Distinct texts per shard of text vectors on disk."""
MAX_TEXT_TOKENS = 128
"""Tokens of a text that are read."""
NEW_ITEMS = 64
"""New items compared with the whole catalogue at a time; affects only memory."""

NEIGHBOURS, SHARPNESS = 5, 0.1
"""A new item gets the mean residual of so many items, weighted by ``softmax(cosine / SHARPNESS)``.
Both were chosen on the validation items of benchmarks/prediction/cold_items.py."""


class Embeddings(nn.Module):
    """Vectors of V tokens.

    Text vectors of a language model share one large direction. By default it is removed, so that
    the angle between two vectors is informative (Mu & Viswanath 2018, arXiv:1702.01417).

    Args:
        texts: (V, D) text vectors; (V, 0) for none (`begin_at_random`).
        width: Size H of the vectors.
        scale: Length of the vectors at the start; input embeddings need that of the backbone's own.
        rank: Size R of a residual; default: ``width``. Smaller residuals are widened by one matrix.
        first_item: Token id of the first item; the tokens before it are those of the template.
        residual_dropout: Probability in training that an item has no residual in one call. The
            text part then learns to do without, as it must for a new item (cf. DropoutNet,
            Volkovs et al. 2017). Nothing is rescaled, and tokens of the template are exempt.
        conditioning: ``none``, ``centered`` or ``whitened``, as in `config.model.TextConfig`. Words
            of the template are never whitened.
        shrinkage: Share of the mean variance in the whitened covariance.
    """

    words: Tensor
    centre: Tensor
    whitening: Tensor | None
    bags: Tensor | None
    bag_weights: Tensor | None

    def __init__(
        self,
        texts: Tensor,
        width: int,
        *,
        scale: float = 1.0,
        rank: int | None = None,
        first_item: int = 0,
        residual_dropout: float = 0.0,
        conditioning: str = "centered",
        shrinkage: float = 0.1,
    ) -> None:
        super().__init__()
        self.first_item, self.residual_dropout, self.width = first_item, residual_dropout, width
        rank = width if rank is None else rank
        centre = texts.mean(dim=0) * (conditioning != "none")
        self.register_buffer("centre", centre)
        self.register_buffer("words", directions(texts, centre))
        self.register_buffer("whitening", None)
        if conditioning == "whitened" and (items := texts[first_item:]).numel():
            self.centre = items.mean(dim=0)
            self.whitening = whitening_of(items, shrinkage)
            self.words[first_item:] = directions(items, self.centre, self.whitening)
        self.register_buffer("bags", None)
        self.register_buffer("bag_weights", None)
        size = texts.shape[1]
        self.project: nn.Module = nn.Linear(size, width, bias=False) if size else _Zeros(width)
        self.residual = nn.Parameter(torch.zeros(len(texts), rank))
        self.widen: nn.Module = nn.Identity() if rank == width else _widening(rank, width)
        if isinstance(self.project, nn.Linear):
            with torch.no_grad():
                self.project.weight.copy_(torch.eye(width, size) * scale)

    def __len__(self) -> int:
        """Number of tokens V."""
        return len(self.words)

    @property
    def has_words(self) -> bool:
        """Whether there are text vectors."""
        return self.words.shape[1] > 0

    @torch.no_grad()
    def begin_at_random(self) -> None:
        """Draw residuals at random, for tokens without text vectors.

        The vector of an item has length one on average. Tokens of the template start a hundred
        times shorter, so that fields do not dominate the item of their event. They are not zero,
        as a cosine has no gradient there.
        """
        self.residual.normal_(std=1 / math.sqrt(self.width))
        self.residual[: self.first_item] *= 0.01

    def forward(self, ids: Tensor | slice) -> Tensor:
        """(..., H) vectors of the tokens ``ids``."""
        residuals = self._residuals()
        if self.bags is not None:  # project and widen are linear, so mix their inputs
            return self.project(self._mixed(self.words, ids)) + self.widen(
                self._mixed(residuals, ids)
            )
        # F.embedding sums gradients in a fixed order, indexing does not
        own = residuals[ids] if isinstance(ids, slice) else F.embedding(ids, residuals)
        return self.project(self.words[ids]) + self.widen(own)

    @torch.no_grad()
    def mix(self, bags: Tensor, weights: Tensor) -> None:
        """Make the vectors of the last N tokens weighted sums; all others stay unchanged.

        Args:
            bags: (N, K) token ids of the terms of each sum.
            weights: (N, K) weights of the terms; 0 for unused places.
        """
        before = len(self) - len(bags)
        own = torch.arange(before)[:, None].expand(-1, bags.shape[1])
        alone = torch.zeros(before, bags.shape[1])
        alone[:, 0] = 1
        self.bags = torch.cat([own.to(bags), bags]).to(self.words.device)
        self.bag_weights = torch.cat([alone.to(weights), weights]).to(self.words)

    def _mixed(self, table: Tensor, ids: Tensor | slice) -> Tensor:
        """(..., C) weighted sums of rows of a (V, C) table."""
        bags, weights = cast("Tensor", self.bags)[ids], cast("Tensor", self.bag_weights)[ids]
        flat = bags.flatten(0, -2), weights.flatten(0, -2).to(table)
        sums = F.embedding_bag(flat[0], table, per_sample_weights=flat[1], mode="sum")
        return sums.unflatten(0, bags.shape[:-1])

    def learned(self, ids: Tensor) -> Tensor:
        """(..., H) sum of the residuals of the (..., A) tokens ``ids``, -1 for none.

        These are added to the last token of an event. They start at zero: text vectors would
        dominate the item (docs/project/experiments.md).
        """
        known = (ids >= 0)[..., None]
        return self.widen((F.embedding(ids.clamp(min=0), self.residual) * known).sum(dim=-2))

    def as_new(self) -> Tensor:
        """(I, H) vectors of the items as if each were added by `extend`, beside all others."""
        words, learned = self.words[self.first_item :], self.residual[self.first_item :]
        mixed = _nearest_residuals(words, words, learned, others=True)
        return self.project(words) + self.widen(mixed)

    def _residuals(self) -> Tensor:
        """(V, R) residuals; in training some are dropped."""
        if not (self.training and self.residual_dropout):
            return self.residual
        kept = torch.rand(len(self), device=self.residual.device) >= self.residual_dropout
        kept[: self.first_item] = True
        return self.residual * kept[:, None]

    def extend(
        self, texts: Tensor, bags: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add N items at the end.

        Residuals are similar for items with similar texts, so a new item starts with the mean
        residual of its nearest known items. With a zero residual it would be ranked too low.

        Args:
            texts: (N, D) text vectors of the new items.
            bags: (N, K) token ids of weighted sums, as in `mix`.
            weights: (N, K) weights of the terms.
        """
        new = directions(texts.to(self.words), self.centre, self.whitening)
        known, learned = self.words[self.first_item :], self.residual.detach()[self.first_item :]
        starts = _nearest_residuals(new, known, learned)
        self.words = torch.cat([self.words, new])
        self.residual = nn.Parameter(torch.cat([self.residual.detach(), starts]))
        if self.bags is not None and self.bag_weights is not None:
            if bags is None or weights is None:  # no mixing
                bags = torch.arange(len(self) - len(new), len(self))[:, None]
                weights = torch.ones(len(new), 1)
            width = max(bags.shape[1], self.bags.shape[1])
            bags = torch.cat([_widened(self.bags, width), _widened(bags.to(self.bags), width)])
            weights = torch.cat(
                [_widened(self.bag_weights, width), _widened(weights.to(self.bag_weights), width)]
            )
        if bags is not None and weights is not None:
            self.mix(bags, weights)


def _widened(table: Tensor, width: int) -> Tensor:
    """(N, width) columns of a table, padded with zeros."""
    return F.pad(table, (0, width - table.shape[1]))


class _Zeros(nn.Module):
    """The text part of vectors without text vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, words: Tensor) -> Tensor:
        """(..., width) zeros from (..., 0)."""
        return words.new_zeros(*words.shape[:-1], self.width)


def _nearest_residuals(
    new: Tensor, known: Tensor, learned: Tensor, *, others: bool = False
) -> Tensor:
    """(N, R) residuals for (N, D) new texts from (I, D) known ones; ``others``: not from itself."""
    residuals = learned.new_zeros(len(new), learned.shape[1])
    if not len(known):
        return residuals
    for start in range(0, len(new), NEW_ITEMS):
        rows = slice(start, start + NEW_ITEMS)
        cosines = new[rows] @ known.T
        if others:
            cosines.diagonal(start).fill_(-1.0)
        cosines, nearest = cosines.topk(min(NEIGHBOURS, len(known)), dim=1)
        weights = (cosines / SHARPNESS).softmax(dim=1)
        residuals[rows] = (weights[..., None] * learned[nearest]).sum(dim=1)
    return residuals


def _widening(rank: int, width: int) -> nn.Linear:
    """Orthogonal columns, scaled so that a step of AdamW moves a vector as far as without them."""
    widen = nn.Linear(rank, width, bias=False)
    nn.init.orthogonal_(widen.weight, gain=math.sqrt(width / rank))
    return widen


def item_bags(
    facts: ItemFacts,
    ids: pa.StringArray,
    *,
    count: int,
    share: float,
    first: int,
    first_item: int,
    known: pa.StringArray | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids and weights of the weighted sums of N items, for `Embeddings.mix`.

    Args:
        facts: Facts on items.
        ids: (N,) item ids; their token ids start at ``first``.
        count: Maximum number of neighbours of an item.
        share: Share of the neighbours in the vector.
        first: Token id of the first of the N items.
        first_item: Token id of the catalogue's first item.
        known: (I,) items that may be neighbours; default: ``ids``. New items have only known items
            as neighbours, and no known item has a new one.

    Returns:
        (N, 1 + K) token ids, the item itself first, and (N, 1 + K) weights: ``1 - share`` for the
        item itself and ``share`` divided among its neighbours. An item without neighbours has
        weight 1.
    """
    near = facts.neighbours(ids, count, among=known)
    itself = np.arange(first, first + len(ids))[:, None]
    others = np.where(near.codes >= 0, near.codes + first_item, itself)
    shares = share * near.weights
    bags = np.concatenate([itself, others], axis=1)
    weights = np.concatenate([1 - shares.sum(axis=1, keepdims=True), shares], axis=1)
    return torch.from_numpy(bags), torch.from_numpy(weights.astype(np.float32))


@torch.no_grad()
def text_vectors(
    backbone: Backbone, texts: Sequence[str], *, batch_size: int = 64, cache: Path | None = None
) -> Tensor:
    """Text vectors: the mean over a text's tokens of the backbone's last hidden states, length one.

    On disk they are kept in shards, in a folder named by a hash of backbone and texts. A run that
    was stopped continues with the first missing shard.

    Args:
        backbone: The backbone, without an active adapter.
        texts: V texts; duplicates are encoded once.
        batch_size: Texts at a time; affects only speed.
        cache: Folder for the shards; default: nothing is kept on disk.

    Returns:
        (V, H) float32.

    Raises:
        ModelError: The backbone is a recurrent one.
        ModelFolderError: A shard on disk cannot be read or does not fit.
        OutputError: The cache cannot be written.
    """
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    place = {text: i for i, text in enumerate(distinct)}
    code = np.fromiter((place[text] for text in texts), np.int64, len(texts))
    by_code = np.argsort(code, kind="stable")
    folder = cache / _digest(backbone, distinct) if cache is not None else None
    vectors = torch.zeros(len(texts), backbone.width)
    # only on a terminal, after 3 seconds
    with tqdm(total=len(distinct), desc="item texts", unit="text", disable=None, delay=3) as bar:
        for start in range(0, len(distinct), SHARD):
            shard = distinct[start : start + SHARD]
            path = folder / f"{start // SHARD:05d}.safetensors" if folder is not None else None
            encoded = _shard(backbone, shard, batch_size, path, bar)
            first, last = np.searchsorted(code, [start, start + len(shard)], sorter=by_code)
            rows = by_code[first:last]
            vectors[torch.from_numpy(rows)] = encoded[torch.from_numpy(code[rows] - start)]
    return vectors


def _shard(
    backbone: Backbone, texts: list[str], batch_size: int, path: Path | None, bar: tqdm
) -> Tensor:
    """(S, H) vectors of a shard's texts, read from the disk if they are there."""
    if path is not None and path.exists():
        bar.update(len(texts))
        return _read(path, (len(texts), backbone.width))
    vectors = _encode(backbone, texts, batch_size, bar)
    if path is not None:
        write_whole(path, lambda temporary: save_file({"vectors": vectors}, temporary))
    return vectors


def _encode(backbone: Backbone, texts: list[str], batch_size: int, bar: tqdm) -> Tensor:
    """(S, H) vectors of texts, a batch at a time."""
    tokenizer, model = _tokenizer(backbone), backbone.model.eval()
    most = min(MAX_TEXT_TOKENS, backbone.context)
    parts = []
    for start in range(0, len(texts), batch_size):
        ids = tokenizer(texts[start : start + batch_size], truncation=True, max_length=most)
        chunk = [tokens or [0] for tokens in ids["input_ids"]]
        lengths = torch.tensor([len(tokens) for tokens in chunk])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.zeros_like(real, dtype=torch.long)
        padded[real] = torch.tensor([token for tokens in chunk for token in tokens])
        padded, weights = padded.to(model.device), real.long().to(model.device)
        states = model(input_ids=padded, attention_mask=weights)[0].float()
        weights = weights[..., None].float()
        parts.append(((states * weights).sum(1) / weights.sum(1)).cpu())
        bar.update(len(chunk))
    return F.normalize(torch.cat(parts), dim=-1)


def _tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    if backbone.tokenizer is None or backbone.kind == "recurrent":
        raise ModelError(
            f"the backbone {backbone.source!r} cannot read texts",
            where="text_vectors",
            expected="a transformer",
            fix="set model.recurrent.words to a transformer",
        )
    return backbone.tokenizer


def _read(path: Path, shape: tuple[int, int]) -> Tensor:
    fix = "delete the file; it is computed again"
    try:
        vectors = load_file(path)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise unreadable(ModelFolderError, path, error, expected="text vectors", fix=fix) from error
    if vectors.shape != shape:
        reason = f"holds vectors of shape {tuple(vectors.shape)}"
        raise ModelFolderError(reason, where=str(path), expected=f"shape {shape}", fix=fix)
    return vectors


def _digest(backbone: Backbone, texts: list[str]) -> str:
    """Hash of the weights, the tokenizer and the texts."""
    digest = hashlib.sha256(type(backbone.model).__name__.encode())
    for name, tensor in backbone.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    vocabulary = sorted(_tokenizer(backbone).get_vocab().items())
    digest.update(repr(vocabulary).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
