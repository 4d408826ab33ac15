"""What a language model makes of texts: the first of the two stages of an item's vector.

The untuned backbone reads every distinct text once; training moves only what stands behind it
(`llm_influence.modeling.units`), so these vectors are never computed again. On disk they lie in
shards, each written whole, in a folder named by what they depend on: a run that was broken off
goes on with the first shard that is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from llm_influence.errors import ModelError, ModelFolderError
from llm_influence.modeling.backbone import Backbone
from llm_influence.utils import write_whole

SHARD = 16_384
"""Distinct texts of a shard."""

LONGEST = 128
"""Tokens of a text that are read."""


@torch.no_grad()
def text_vectors(
    backbone: Backbone, texts: Sequence[str], *, batch_size: int = 64, cache: Path | None = None
) -> Tensor:
    """Mean of the untuned backbone's last hidden states over each text's tokens, length one.

    Args:
        backbone: Where the vectors come from; must not carry an adapter that is on.
        texts: V texts; duplicates are encoded once.
        batch_size: Texts a pass; affects speed alone.
        cache: Folder for the shards; default: nothing is kept on disk.

    Returns:
        (V, H) float32, the only large thing in memory that grows with V.

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
    # shown only on a terminal, and only where it takes a while
    with tqdm(total=len(distinct), desc="item texts", unit="text", disable=None, delay=3) as bar:
        for start in range(0, len(distinct), SHARD):
            shard = distinct[start : start + SHARD]
            path = folder / f"{start // SHARD:05d}.safetensors" if folder is not None else None
            found = _shard(backbone, shard, batch_size, path, bar)
            first, last = np.searchsorted(code, [start, start + len(shard)], sorter=by_code)
            rows = by_code[first:last]
            vectors[torch.from_numpy(rows)] = found[torch.from_numpy(code[rows] - start)]
    return vectors


def _shard(
    backbone: Backbone, texts: list[str], batch_size: int, path: Path | None, bar: tqdm
) -> Tensor:
    """(S, H) vectors of a shard's texts, from the disk where they are there."""
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
    most = min(LONGEST, backbone.context)
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
            f"{backbone.source!r} has learned no language that it could read a text by",
            where="text_vectors",
            expected="a transformer",
            fix="let model.recurrent.words name one",
        )
    return backbone.tokenizer


def _read(path: Path, shape: tuple[int, int]) -> Tensor:
    try:
        vectors = load_file(path)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelFolderError(
            f"cannot be read ({error})",
            where=str(path),
            expected="text vectors, as an earlier run wrote them",
            fix="delete the file; it is computed again",
        ) from error
    if vectors.shape != shape:
        raise ModelFolderError(
            f"holds vectors of shape {tuple(vectors.shape)}",
            where=str(path),
            expected=f"shape {shape}",
            fix="delete the file; it is computed again",
        )
    return vectors


def _digest(backbone: Backbone, texts: list[str]) -> str:
    """Names the weights, the tokenizer and the texts."""
    digest = hashlib.sha256(type(backbone.model).__name__.encode())
    for name, tensor in backbone.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    vocabulary = sorted(_tokenizer(backbone).get_vocab().items())
    digest.update(repr(vocabulary).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
