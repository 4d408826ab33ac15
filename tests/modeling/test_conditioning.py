"""Tests of the conditioning of text vectors."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.conditioning import directions, smoothed, whitening_of
from llm_influence.modeling.embeddings import Embeddings
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3.0


def test_without_shrinkage_the_covariance_becomes_the_identity(texts):
    whitened = (texts - texts.mean(dim=0)) @ whitening_of(texts, 0.0)
    covariance = whitened.T @ whitened / len(texts)
    torch.testing.assert_close(covariance, torch.eye(6), atol=1e-3, rtol=0)


def test_whitening_follows_its_formula(texts):
    covariance = torch.cov(texts.T, correction=0).double()
    shrunk = 0.7 * covariance + 0.3 * covariance.trace() / 6 * torch.eye(6)
    matrix = whitening_of(texts, 0.3).double()
    expected = torch.eye(6, dtype=torch.double)
    torch.testing.assert_close(matrix @ shrunk @ matrix, expected, atol=1e-4, rtol=0)


def test_full_shrinkage_leaves_directions(texts):
    centre = texts.mean(dim=0)
    whitened = directions(texts, centre, whitening_of(texts, 1.0))
    torch.testing.assert_close(whitened, directions(texts, centre), atol=1e-5, rtol=0)


def test_fewer_texts_than_dimensions_give_finite_vectors():
    few = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert directions(few, few.mean(dim=0), whitening_of(few, 0.0)).isfinite().all()


def test_the_words_of_the_template_are_not_whitened(texts):
    plain = Embeddings(texts, 6, first_item=5)
    whitened = Embeddings(texts, 6, first_item=5, conditioning="whitened")
    assert torch.equal(whitened.words[:5], plain.words[:5])
    assert not torch.allclose(whitened.words[5:], plain.words[5:])


def test_without_conditioning_only_the_length_changes(texts):
    raw = Embeddings(texts, 6, conditioning="none")
    assert torch.equal(raw.words, F.normalize(texts, dim=-1))


def test_smoothing_mixes_an_item_with_those_beside_it():
    units = torch.eye(4)
    log = BehaviorLog.from_arrays(
        user_ids=["u", "v"],
        offsets=np.array([0, 3, 5]),
        items=np.array([0, 1, 0, 2, 2]),  # item 3 is alone; no pair across users
        timestamps=np.arange(5),
        catalogue=Catalogue.from_ids(["a", "b", "c", "d"]),
    )
    mixed = smoothed(units, log, 0.5)
    half = F.normalize(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), dim=-1)[0]
    torch.testing.assert_close(mixed[:2], torch.stack([half, half]))
    assert torch.equal(mixed[2:], units[2:])


@pytest.mark.parametrize("style", ["token", "text"])
def test_a_saved_model_conditions_new_items_as_the_known_ones(tmp_path, log, style):
    text = {"conditioning": "whitened", "shrinkage": 0.2}
    config = tiny.run_config("bert", style, model={"item_head": {"text": text}})
    model = InfluenceModel.build(config, log).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = InfluenceModel.from_pretrained(tmp_path / "model")
    twin = Catalogue.from_table(pa.table({"item_id": ["twin"], "title": [""]}))
    twin = Catalogue(twin.ids, *2 * [[model.catalogue.texts[3]]], twin.table)
    for each in (model, loaded):
        each.add_items(twin)
        new, known = each.embeddings.words[-1], each.embeddings.words[each.first_item + 3]
        torch.testing.assert_close(new, known, atol=1e-5, rtol=0)
    assert torch.equal(model.embeddings.words, loaded.embeddings.words)


def test_smoothing_changes_known_items_at_build_time(log):
    heads = [{"text": {"smoothing": share}} for share in (0.0, 0.3)]
    configs = [tiny.run_config(model={"item_head": head}) for head in heads]
    plain, mixed = (InfluenceModel.build(config, log).embeddings for config in configs)
    assert torch.equal(plain.words[: plain.first_item], mixed.words[: plain.first_item])
    assert not torch.equal(plain.words, mixed.words)
    torch.testing.assert_close(mixed.words.norm(dim=-1), plain.words.norm(dim=-1))


@pytest.mark.parametrize("style", ["token", "text"])
def test_a_recurrent_backbone_whitens_the_vectors_of_its_text_reader(log, style):
    options = tiny.recurrent_options("gru", style)
    options["recurrent"] = {**options.get("recurrent", {}), "words": tiny.backbone_folder("bert")}
    options["item_head"] = {"text": {"conditioning": "whitened", "smoothing": 0.2}}
    model = InfluenceModel.build(tiny.run_config("gru", style, model=options), log)
    assert model.embeddings.whitening.shape == 2 * (model.embeddings.words.shape[1],)


def test_without_text_vectors_there_is_nothing_to_condition(log):
    options = tiny.recurrent_options("gru", "token")
    options["item_head"] = {"text": {"conditioning": "whitened", "smoothing": 0.2}}
    model = InfluenceModel.build(tiny.run_config("gru", model=options), log)
    assert model.embeddings.whitening is None
