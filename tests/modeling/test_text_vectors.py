"""Vectors of texts: duplicates once, memory once, written once."""

import pytest
import torch

from llm_influence.errors import ModelFolderError
from llm_influence.modeling import embeddings as module
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.embeddings import text_vectors
from tests import tiny

TEXTS = ["red lamp", "", "small old blue chair", "red lamp", "film", "old film", "new book"]


@pytest.fixture(params=tiny.BACKBONES)
def kind(request):
    return request.param


@pytest.fixture
def bert():
    return load_backbone(tiny.backbone_folder("bert"))


def count_texts(backbone, monkeypatch) -> list[int]:
    """Sizes of the batches that the backbone reads from now on."""
    sizes, forward = [], backbone.model.forward

    def counting(*args, **named):
        sizes.append(len(named["input_ids"]))
        return forward(*args, **named)

    monkeypatch.setattr(backbone.model, "forward", counting)
    return sizes


def test_text_vectors_have_length_one_and_do_not_depend_on_batch_or_order(kind):
    backbone = load_backbone(tiny.backbone_folder(kind))
    texts = ["red lamp", "", "small old blue chair", "red lamp", "film"]
    vectors = text_vectors(backbone, texts)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5))
    assert torch.equal(vectors[0], vectors[3])
    assert not torch.allclose(vectors[0], vectors[4], atol=1e-3)
    one_by_one = text_vectors(backbone, texts[::-1], batch_size=1).flip(0)
    torch.testing.assert_close(vectors, one_by_one, rtol=0, atol=1e-5)


def test_every_distinct_text_is_read_once(bert, monkeypatch):
    sizes = count_texts(bert, monkeypatch)
    text_vectors(bert, TEXTS * 3, batch_size=4)
    assert sizes == [4, 2]


def test_shards_on_disk_hold_the_same_vectors_and_none_is_computed_twice(
    bert, monkeypatch, tmp_path
):
    plain = text_vectors(bert, TEXTS)
    monkeypatch.setattr(module, "SHARD", 4)
    first = text_vectors(bert, TEXTS, cache=tmp_path)
    torch.testing.assert_close(first, plain, rtol=0, atol=1e-6)
    sizes = count_texts(bert, monkeypatch)
    assert torch.equal(text_vectors(bert, TEXTS, cache=tmp_path), first)
    assert sizes == []
    shards = sorted(tmp_path.glob("*/*"))
    assert [path.name for path in shards] == ["00000.safetensors", "00001.safetensors"]
    shards[1].unlink()  # a run that was broken off goes on where it was
    assert torch.equal(text_vectors(bert, TEXTS, cache=tmp_path), first)
    assert sizes == [2]


def test_other_texts_or_another_backbone_are_other_vectors(bert, tmp_path):
    text_vectors(bert, TEXTS, cache=tmp_path)
    text_vectors(bert, [*TEXTS, "table"], cache=tmp_path)
    with torch.no_grad():
        bert.model.embeddings.word_embeddings.weight[5] += 1
    text_vectors(bert, TEXTS, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_shard_that_is_damaged_is_refused_with_its_name(bert, tmp_path):
    text_vectors(bert, TEXTS, cache=tmp_path)
    (shard,) = tmp_path.glob("*/*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match=r"00000\.safetensors.*delete the file"):
        text_vectors(bert, TEXTS, cache=tmp_path)
