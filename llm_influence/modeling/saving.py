"""Model folders: the parts of a model as safetensors, Parquet and JSON.

model.json          format version, style, template, vocabulary, configuration, protocol, rules
README.md           model card
catalogue.parquet   items
facts.parquet       facts of a knowledge graph on items (only with a graph)
counts.npy          number of training events of each item
heads.safetensors   embeddings and heads
adapter/            adapter in the format of PEFT (not for kinds `frozen` and `full`)
backbone/           untuned backbone and its tokenizer (not in training checkpoints, which have
                    the backbone's source); for kind `full` the tuned backbone, always present
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_influence.config.model import OWN_BACKBONES, ModelConfig
from llm_influence.config.rules import read_rules
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.errors import (
    DataError,
    InfluenceError,
    ModelError,
    ModelFolderError,
    missing,
    unreadable,
)
from llm_influence.modeling.adapters import DESCRIPTION, KINDS, TENSORS, Adapter
from llm_influence.modeling.backbone import Backbone, load_backbone
from llm_influence.modeling.embeddings import Embeddings
from llm_influence.modeling.heads import FeedbackScale, make_heads
from llm_influence.modeling.item_links import ItemLinks
from llm_influence.modeling.memory import Memory
from llm_influence.modeling.parts import Parts
from llm_influence.modeling.recurrent import load_recurrent
from llm_influence.modeling.sharing import model_card
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.rendering.vocabulary import ValueBins, Vocabulary
from llm_influence.types import IntArray
from llm_influence.utils import unwritable, write_text

FORMAT = 1
SAVE_AGAIN = "save the model again"
_REQUIRED: dict[str, tuple[str, ...]] = {
    "backbone": (),
    "config": (),
    "rendering": ("style", "template", "max_events", "max_tokens"),
    "vocabulary": ("behaviors", "value_edges", "features"),
    "feedback": (),
    "protocol": (),
    "rules": (),
}
"""Keys of `model.json`, and keys inside them."""
DESCRIBED, CARD, HEADS = "model.json", "README.md", "heads.safetensors"
CATALOGUE = "catalogue.parquet"
COUNTS, FACTS, BACKBONE, ADAPTER = "counts.npy", "facts.parquet", "backbone", "adapter"


def save_parts(parts: Parts, folder: Path, *, with_backbone: bool) -> None:
    """Write a model folder; arguments and errors as in `InfluenceModel.save_pretrained`."""
    backbone, vocabulary = parts.backbone, parts.encoder.vocabulary
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_head_state(parts), folder / HEADS)
        parts.adapter.save(folder / ADAPTER)
        if with_backbone or parts.adapter.saved_in == "backbone":
            state = parts.adapter.backbone_state()
            backbone.model.save_pretrained(str(folder / BACKBONE), state_dict=state)
            if backbone.tokenizer is not None:
                backbone.tokenizer.save_pretrained(str(folder / BACKBONE))
        vocabulary.catalogue.save(folder / CATALOGUE)
        if vocabulary.counts is not None:
            np.save(folder / COUNTS, vocabulary.counts, allow_pickle=False)
        if parts.facts is not None:
            parts.facts.save(folder / FACTS)
        text = json.dumps(_description(parts), indent=2, ensure_ascii=False)
        write_text(folder / DESCRIBED, text + "\n")
        write_text(folder / CARD, model_card(parts))
    except InfluenceError:  # some are also OSError: they say already what is wrong
        raise
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def load_parts(folder: Path) -> Parts:
    """Read a model folder; errors as in `InfluenceModel.from_pretrained`."""
    described = _read_description(folder)
    with _reading(folder / DESCRIBED):
        config = ModelConfig.model_validate(described["config"])
    backbone = _load_backbone(folder, described, config)
    encoder = _load_encoder(folder, described, backbone)
    tensors = _load_tensors(folder / HEADS)
    embeddings = _make_embeddings(tensors, folder / HEADS, backbone.width, encoder, config)
    adapter = _load_adapter(folder / ADAPTER, backbone, config)
    if encoder.style == "token" and backbone.words is not None:  # the embeddings replace them
        backbone.words.requires_grad_(requires_grad=False)
    scale = _load_scale(folder, described, config)
    memory = None
    if config.item_head.weight and config.item_head.memory.enabled:
        memory = _make_memory(tensors, folder / HEADS, encoder.vocabulary)
    heads = make_heads(backbone, encoder, config, scale, memory)
    facts = None
    if (folder / FACTS).exists():
        with _reading(folder / FACTS):
            facts = ItemFacts.load(folder / FACTS)
    elif config.item_head.neighbors.share or config.item_head.neighbors.share_of_new:
        raise _missing(folder, [FACTS])
    rules = read_rules(described["rules"], str(folder / DESCRIBED))
    parts = Parts(
        *(backbone, adapter, encoder, embeddings, heads, config, facts),
        protocol=described["protocol"],
        rules=rules,
    )
    _fill_heads(parts, tensors, folder / HEADS)
    return parts


def restore_weights(parts: Parts, folder: Path) -> None:
    """Put the trained weights of a saved folder into the parts of a model of the same shape.

    Raises:
        ModelFolderError: A file or key is missing or does not fit.
    """
    _fill_heads(parts, _load_tensors(folder / HEADS), folder / HEADS)
    if parts.adapter.saved_in == "adapter":
        _fill_adapter(parts.adapter, folder / ADAPTER)
    elif parts.adapter.saved_in == "backbone":
        parts.adapter.load(_own_backbone(folder, parts.config).model.state_dict())


def _description(parts: Parts) -> dict[str, object]:
    encoder, vocabulary, head = parts.encoder, parts.encoder.vocabulary, parts.heads.feedback
    return {
        "format": FORMAT,
        "backbone": parts.backbone.source,
        "config": parts.config.model_dump(mode="json"),
        "rendering": {
            "style": encoder.style,
            "max_events": encoder.max_events,
            "max_tokens": encoder.max_tokens,
            "template": encoder.template.model_dump(mode="json"),
        },
        "vocabulary": {
            "behaviors": vocabulary.behaviors,
            "value_edges": vocabulary.values.edges.tolist(),
            "features": vocabulary.features,
        },
        "feedback": None if head is None else asdict(head.scale),
        "protocol": parts.protocol,
        "rules": [rule.model_dump(mode="json") for rule in parts.rules],
    }


def _read_description(folder: Path) -> dict:
    path = folder / DESCRIBED
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        expected = "a folder written by save_pretrained or `llm-influence finetune`"
        fix = "check the path, or train the model first"
        raise unreadable(ModelFolderError, path, error, expected=expected, fix=fix) from error
    except json.JSONDecodeError as error:
        raise ModelFolderError(
            f"not JSON ({error})", where=str(path), expected="JSON", fix=SAVE_AGAIN
        ) from error
    version = described.get("format") if isinstance(described, dict) else None
    if version != FORMAT:
        raise ModelFolderError(
            f"format {version!r}",
            where=str(path),
            expected=f"format {FORMAT}",
            fix="load it with the version of llm_influence that wrote it",
        )
    if lacking := list(_lacking(described)):
        raise _missing(path, lacking)
    return described


def _lacking(described: dict) -> Iterator[str]:
    """Keys of `_REQUIRED` that are missing: ``vocabulary`` or ``vocabulary.behaviors``."""
    for key, inside in _REQUIRED.items():
        if key not in described:
            yield key
            continue
        part = described[key]
        yield from (f"{key}.{n}" for n in inside if not isinstance(part, dict) or n not in part)


def _load_backbone(folder: Path, described: dict, config: ModelConfig) -> Backbone:
    if (folder / BACKBONE).is_dir() or KINDS[config.adapter.kind].saved_in == "backbone":
        return replace(_own_backbone(folder, config), source=described["backbone"])
    return load_backbone(described["backbone"], layers=config.layers, dropout=config.dropout)


def _own_backbone(folder: Path, config: ModelConfig) -> Backbone:
    own = folder / BACKBONE
    with _reading(own):
        if config.backbone in OWN_BACKBONES:
            backbone = load_recurrent(config.backbone, own)
        else:
            backbone = load_backbone(str(own), complete=True)
    for name, weights in backbone.model.named_parameters():
        _check_finite(name, weights.detach(), own)
    return backbone


def _load_encoder(folder: Path, described: dict, backbone: Backbone) -> Encoder:
    words, rendering = described["vocabulary"], described["rendering"]
    with _reading(folder / CATALOGUE):
        catalogue = Catalogue.load(folder / CATALOGUE)
    vocabulary = Vocabulary(
        behaviors=tuple(words["behaviors"]),
        values=ValueBins(np.array(words["value_edges"], dtype=np.float64)),
        features={name: tuple(known) for name, known in words["features"].items()},
        catalogue=catalogue,
        counts=_load_counts(folder / COUNTS, len(catalogue)),
    )
    return Encoder(
        Template.model_validate(rendering["template"]),
        vocabulary,
        style=rendering["style"],
        tokenizer=backbone.tokenizer,
        max_events=rendering["max_events"],
        max_tokens=rendering["max_tokens"],
    )


def _make_embeddings(
    tensors: dict[str, Tensor], path: Path, width: int, encoder: Encoder, config: ModelConfig
) -> Embeddings:
    """Embeddings in the shape of the saved ones."""
    bags = ("embeddings.bags", "embeddings.bag_weights")
    required = {"embeddings.words", "embeddings.residual"}
    required |= set(bags) if config.item_head.neighbors.share else set()
    if lacking := sorted(required - tensors.keys()):
        raise _missing(path, lacking)
    tokens = encoder.token_cache
    embeddings = Embeddings(
        tensors["embeddings.words"],
        width,
        rank=tensors["embeddings.residual"].shape[-1],
        first_item=tokens.first_item if isinstance(tokens, IdTokenCache) else 0,
        residual_dropout=config.residual_dropout,
    )
    if tensors.keys() >= set(bags):
        embeddings.mix(*(tensors[name] for name in bags))
    embeddings.whitening = tensors.get("embeddings.whitening")
    return embeddings


def _make_memory(tensors: dict[str, Tensor], path: Path, vocabulary: Vocabulary) -> Memory:
    """A memory in the shape of the saved one."""
    prefix, items = "item_head.memory.", len(vocabulary.catalogue)
    names = [f"{prefix}{part}.codes" for part in ("transitions", "associations")]
    names.append(f"{prefix}sample")
    if lacking := sorted(set(names) - tensors.keys()):
        raise _missing(path, lacking)
    transitions, associations, sample = (len(tensors[name]) for name in names)
    return Memory(
        ItemLinks(items, transitions),
        ItemLinks(items, associations),
        behaviors=vocabulary.behaviors,
        values=len(vocabulary.values.edges) + 1,
        sample=sample,
    )


def _load_scale(folder: Path, described: dict, config: ModelConfig) -> FeedbackScale | None:
    if config.feedback is None:
        return None
    scale, names = described["feedback"], {field.name for field in fields(FeedbackScale)}
    if not isinstance(scale, dict) or scale.keys() != names:
        raise _missing(folder / DESCRIBED, ["feedback"])
    # JSON has no tuples
    lists = {name: tuple(value) for name, value in scale.items() if isinstance(value, list)}
    return FeedbackScale(**scale | lists)


def _load_counts(path: Path, items: int) -> IntArray | None:
    """(I,) training events of each item; None if the model was saved without them."""
    if not path.exists():
        return None
    with _reading(path):
        counts = np.load(path, allow_pickle=False)
    if counts.shape != (items,):
        expected = f"shape ({items},), one count for each item of the catalogue"
        raise _other_run(path, f"counts of shape {counts.shape}", expected)
    return counts


def _load_adapter(folder: Path, backbone: Backbone, config: ModelConfig) -> Adapter:
    kind, model = KINDS[config.adapter.kind], backbone.model.requires_grad_(requires_grad=False)
    if kind.saved_in != "adapter":
        return kind.attach(model, config.adapter, folder)
    _load_tensors(folder / TENSORS)
    description = folder / DESCRIPTION
    if not description.is_file():  # PEFT would look for the folder's name on the hub
        raise _missing(folder, [description.name])
    with _reading(description):
        adapter = kind.attach(model, config.adapter, folder)
    _fill_adapter(adapter, folder)
    return adapter


def _fill_adapter(adapter: Adapter, folder: Path) -> None:
    path = folder / TENSORS
    tensors = _load_tensors(path)
    if lacking := sorted(adapter.state().keys() - tensors.keys()):
        raise _missing(path, lacking)
    with _reading(path):
        adapter.load(tensors)


def _modules(parts: Parts) -> dict[str, nn.Module]:
    """Modules of `heads.safetensors` by the prefix of their tensors."""
    heads, feedback, when = parts.heads, parts.heads.feedback, parts.heads.when
    modules: dict[str, nn.Module | None] = {"embeddings": parts.embeddings}
    modules |= {"item_head": heads.item, "behavior_head": heads.behavior}
    modules |= {"feedback_head": feedback, "when": when}
    return {name: module for name, module in modules.items() if module is not None}


def _head_state(parts: Parts) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.detach().contiguous()
        for part, module in _modules(parts).items()
        for name, tensor in module.state_dict().items()
    }


def _fill_heads(parts: Parts, tensors: dict[str, Tensor], path: Path) -> None:
    own = _head_state(parts)
    if lacking := sorted(own.keys() - tensors.keys()):
        raise _missing(path, lacking)
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            shapes = (tuple(tensors[name].shape), tuple(tensor.shape))
            raise _other_run(path, f"{name} has shape {shapes[0]}", f"shape {shapes[1]}")
    for part, module in _modules(parts).items():
        start = f"{part}."
        state = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        module.load_state_dict(state)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    with _reading(path):
        tensors = load_file(path)
    for name, tensor in tensors.items():
        _check_finite(name, tensor, path)
    return tensors


def _check_finite(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise ModelFolderError(
            f"{name} has {count:,} numbers that are not finite",
            where=str(path),
            expected="finite weights",
            fix="use an earlier checkpoint, or train again with a lower learning rate",
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every error while ``path`` is read into an error of the model folder."""
    try:
        yield
    except ModelFolderError:
        raise
    except (
        *(OSError, ValueError, RuntimeError, SafetensorError, DataError, ModelError),
        *(TypeError, LookupError, AttributeError),  # a part of another shape than it was saved in
    ) as error:
        raise ModelFolderError(
            f"cannot be read ({error})",
            where=str(path),
            expected="a complete part of a model folder",
            fix=f"{SAVE_AGAIN}, or copy the folder again",
        ) from error


def _missing(path: Path, names: Sequence[str]) -> ModelFolderError:
    expected = "every part, head and adapter key of the model"
    return missing(ModelFolderError, names, where=str(path), expected=expected, fix=SAVE_AGAIN)


def _other_run(path: Path, reason: str, expected: str) -> ModelFolderError:
    fix = f"the files of this folder come from different runs: {SAVE_AGAIN}"
    return ModelFolderError(reason, where=str(path), expected=expected, fix=fix)
