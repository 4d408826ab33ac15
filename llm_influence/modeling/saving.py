"""A model on disk: one folder of safetensors and JSON.

model.json          format version, style, template, vocabulary, configuration, protocol, rules
catalogue.parquet   the items
facts.parquet       what a knowledge graph says of items (absent without one)
counts.npy          how many events of training each item has
heads.safetensors   unit vectors, item head, behaviour head, and feedback head and "when" if any
adapter/            the adapter, as PEFT writes it (absent for kinds `frozen` and `full`)
backbone/           the backbone and its tokenizer, untuned (absent in training checkpoints, which
                    name the backbone's source instead); for kind `full` tuned, and always there
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_influence.config.model import RECURRENT, ModelConfig
from llm_influence.config.rules import read_rules
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.errors import DataError, ModelError, ModelFolderError
from llm_influence.modeling.adapters import DESCRIPTION, KINDS, TENSORS, Adapter
from llm_influence.modeling.backbone import Backbone, load_backbone
from llm_influence.modeling.embeddings import Embeddings
from llm_influence.modeling.heads import FeedbackScale
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.recurrent import load_recurrent
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.rendering.vocabulary import ValueBins, Vocabulary
from llm_influence.types import IntArray
from llm_influence.utils import unwritable, write_text

FORMAT = 1
_DESCRIBED: dict[str, tuple[str, ...]] = {
    "backbone": (),
    "config": (),
    "rendering": ("style", "template", "max_events", "max_tokens"),
    "vocabulary": ("behaviors", "value_edges", "features"),
    "protocol": (),
}
"""What `model.json` cannot do without, and what these parts hold themselves."""

COUNTS = "counts.npy"
FACTS = "facts.parquet"
BACKBONE = "backbone"
_PARTS = ("units", "item_head", "behavior_head", "feedback_head", "when")


def save_model(model: InfluenceModel, folder: Path, *, with_backbone: bool) -> None:
    """Write ``model`` to ``folder``; see `InfluenceModel.save_pretrained`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_head_state(model), folder / "heads.safetensors")
        model.adapter.save(folder / "adapter")
        if with_backbone or model.adapter.saved_in == "backbone":
            base, state = model.backbone.model, model.adapter.backbone_state()
            base.save_pretrained(str(folder / BACKBONE), state_dict=state)
            if model.backbone.tokenizer is not None:
                model.backbone.tokenizer.save_pretrained(str(folder / BACKBONE))
        model.catalogue.save(folder / "catalogue.parquet")
        if (counts := model.encoder.vocabulary.counts) is not None:
            np.save(folder / COUNTS, counts, allow_pickle=False)
        if model.facts is not None:
            model.facts.save(folder / FACTS)
        text = json.dumps(_description(model), indent=2, ensure_ascii=False)
        write_text(folder / "model.json", text + "\n")
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def load_model(folder: Path) -> InfluenceModel:
    """Read a model from ``folder``; see `InfluenceModel.from_pretrained`."""
    described = _read_description(folder)
    with _reading(folder / "model.json"):
        config = ModelConfig.model_validate(described["config"])
    backbone = _load_backbone(folder, described, config)
    encoder = _load_encoder(folder, described, backbone)
    heads = _load_tensors(folder / "heads.safetensors")
    if lacking := sorted({"units.words", "units.residual"} - heads.keys()):
        raise _missing(folder / "heads.safetensors", lacking)
    rank = heads["units.residual"].shape[-1]
    units = Embeddings(heads["units.words"], backbone.width, rank=rank)
    mixed = ("units.bags", "units.bag_weights")
    if config.item_head.neighbors.share and (lacking := sorted(set(mixed) - heads.keys())):
        raise _missing(folder / "heads.safetensors", lacking)
    if heads.keys() >= set(mixed):
        units.mix(*(heads[name] for name in mixed))
    adapter = _load_adapter(folder / "adapter", backbone, config)
    feedback = _load_scale(folder, described, config)
    model = InfluenceModel(backbone, adapter, encoder, units, config, feedback)
    _fill_heads(model, heads, folder / "heads.safetensors")
    if (folder / FACTS).exists():
        with _reading(folder / FACTS):
            model.facts = ItemFacts.load(folder / FACTS)
    elif config.item_head.neighbors.share or config.item_head.neighbors.share_of_new:
        raise _missing(folder, [FACTS])
    model.protocol = described["protocol"]
    # folders of the time before there were rules have none
    model.rules = read_rules(described.get("rules", []), str(folder / "model.json"))
    return model.eval()


def restore_weights(model: InfluenceModel, folder: Path) -> None:
    """Put the trained weights of a saved folder into ``model``, which has the same shape."""
    path = folder / "heads.safetensors"
    _fill_heads(model, _load_tensors(path), path)
    if model.adapter.saved_in == "adapter":
        _fill_adapter(model.adapter, folder / "adapter")
    elif model.adapter.saved_in == "backbone":
        model.adapter.load(_own_backbone(folder, model.config).model.state_dict())


def _description(model: InfluenceModel) -> dict[str, object]:
    encoder, vocabulary, head = model.encoder, model.encoder.vocabulary, model.feedback_head
    return {
        "format": FORMAT,
        "backbone": model.backbone.source,
        "config": model.config.model_dump(mode="json"),
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
        "protocol": model.protocol,
        "rules": [rule.model_dump(mode="json") for rule in model.rules],
    }


def _read_description(folder: Path) -> dict:
    path = folder / "model.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(
            f"cannot be read ({error.strerror})",
            where=str(path),
            expected="a folder written by save_pretrained or `llm-influence finetune`",
            fix="check the path, or train the model first",
        ) from error
    except json.JSONDecodeError as error:
        raise ModelFolderError(
            f"not JSON ({error})", where=str(path), expected="JSON", fix="save the model again"
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
    """Parts of `_DESCRIBED` that are not there: ``vocabulary``, or ``vocabulary.behaviors``."""
    for part, inside in _DESCRIBED.items():
        if part not in described:
            yield part
            continue
        found = described[part]
        yield from (f"{part}.{n}" for n in inside if not isinstance(found, dict) or n not in found)


def _load_backbone(folder: Path, described: dict, config: ModelConfig) -> Backbone:
    if (folder / BACKBONE).is_dir() or KINDS[config.adapter.kind].saved_in == "backbone":
        return replace(_own_backbone(folder, config), source=described["backbone"])
    return load_backbone(described["backbone"], layers=config.layers, dropout=config.dropout)


def _own_backbone(folder: Path, config: ModelConfig) -> Backbone:
    own = folder / BACKBONE
    with _reading(own):
        if config.backbone in RECURRENT:
            return load_recurrent(config.backbone, own)
        return load_backbone(str(own), complete=True)


def _load_encoder(folder: Path, described: dict, backbone: Backbone) -> Encoder:
    words, rendering = described["vocabulary"], described["rendering"]
    with _reading(folder / "catalogue.parquet"):
        catalogue = Catalogue.load(folder / "catalogue.parquet")
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


def _load_scale(folder: Path, described: dict, config: ModelConfig) -> FeedbackScale | None:
    """None without a feedback head, as in a folder of the time before there was one."""
    if config.feedback is None:
        return None
    found = described.get("feedback")
    if not isinstance(found, dict) or found.keys() != {f.name for f in fields(FeedbackScale)}:
        raise _missing(folder / "model.json", ["feedback"])
    scale = FeedbackScale(**found)  # JSON has no tuples
    return replace(
        scale,
        behaviors=tuple(scale.behaviors),
        levels=tuple(scale.levels),
        shares=tuple(scale.shares),
    )


def _load_counts(path: Path, items: int) -> IntArray | None:
    """(I,) events of training by item, or None in a folder of the time before they were kept."""
    if not path.exists():
        return None
    with _reading(path):
        counts = np.load(path, allow_pickle=False)
    if counts.shape != (items,):
        raise ModelFolderError(
            f"counts of shape {counts.shape}",
            where=str(path),
            expected=f"shape ({items},), one count an item of the catalogue",
            fix="the files of this folder come from different runs: save the model again",
        )
    return counts


def _load_adapter(folder: Path, backbone: Backbone, config: ModelConfig) -> Adapter:
    kind, model = KINDS[config.adapter.kind], backbone.model.requires_grad_(False)
    if kind.saved_in != "adapter":
        return kind.restore(model, config.adapter, folder)
    _load_tensors(folder / TENSORS)
    description = folder / DESCRIPTION
    if not description.is_file():  # PEFT would take the folder's name for a hub id
        raise _missing(folder, [description.name])
    with _reading(description):
        adapter = kind.restore(model, config.adapter, folder)
    _fill_adapter(adapter, folder)
    return adapter


def _fill_adapter(adapter: Adapter, folder: Path) -> None:
    path = folder / TENSORS
    saved = _load_tensors(path)
    if lacking := sorted(adapter.state().keys() - saved.keys()):
        raise _missing(path, lacking)
    with _reading(path):
        adapter.load(saved)


def _head_state(model: InfluenceModel) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.detach().contiguous()
        for part, module in _parts(model).items()
        for name, tensor in module.state_dict().items()
    }


def _parts(model: InfluenceModel) -> dict[str, nn.Module]:
    """What `heads.safetensors` holds, as far as the model has it."""
    found = {part: getattr(model, part) for part in _PARTS}
    return {part: module for part, module in found.items() if module is not None}


def _fill_heads(model: InfluenceModel, heads: dict[str, Tensor], path: Path) -> None:
    wanted = _head_state(model)
    if lacking := sorted(wanted.keys() - heads.keys()):
        raise _missing(path, lacking)
    for name, tensor in wanted.items():
        if heads[name].shape != tensor.shape:
            raise ModelFolderError(
                f"{name} has shape {tuple(heads[name].shape)}",
                where=str(path),
                expected=f"shape {tuple(tensor.shape)}",
                fix="the files of this folder come from different runs: save the model again",
            )
    for part, module in _parts(model).items():
        own = {n.removeprefix(f"{part}."): t for n, t in heads.items() if n.startswith(f"{part}.")}
        module.load_state_dict(own)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    with _reading(path):
        return load_file(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while ``path`` is read is an error of the model folder."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, DataError, ModelError) as error:
        raise ModelFolderError(
            f"cannot be read ({error})",
            where=str(path),
            expected="a part of a model folder, whole",
            fix="save the model again; a copy that was cut short gives this error",
        ) from error


def _missing(path: Path, names: list[str]) -> ModelFolderError:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ModelFolderError(
        f"lacks {shown}",
        where=str(path),
        expected="every part, head and adapter key of the model",
        fix="save the model again, whole",
    )
