"""Embeddings: start, residuals, new items, mixing with neighbours, and text vectors."""

import pyarrow as pa
import pytest
import torch

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ModelFolderError
from llm_influence.modeling import embeddings as module
from llm_influence.modeling.backbone import load_backbone
from llm_influence.modeling.embeddings import Embeddings, item_bags, text_vectors
from llm_influence.modeling.model import InfluenceModel
from tests import graph, tiny


def texts(rows, seed=0):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)) + 3


def test_a_fresh_vector_is_its_words_without_the_shared_direction_at_the_given_length():
    given = texts(9)
    embeddings = Embeddings(given, 6, scale=2.5)
    expected = torch.nn.functional.normalize(given - given.mean(0), dim=-1) * 2.5
    torch.testing.assert_close(embeddings(slice(None)), expected)
    torch.testing.assert_close(embeddings(torch.tensor([[1, 4]])), expected[[1, 4]][None])


def test_what_is_added_is_the_sum_of_residuals_and_starts_at_nothing():
    embeddings = Embeddings(texts(9), 6)
    ids = torch.tensor([[[1, 4], [-1, 4], [-1, -1]]])
    assert embeddings.learned(ids).eq(0).all()
    with torch.no_grad():
        embeddings.residual.copy_(texts(9, seed=2))
    one, four = embeddings.residual[1], embeddings.residual[4]
    torch.testing.assert_close(embeddings.learned(ids)[0], torch.stack([one + four, four, 0 * one]))
    assert embeddings.learned(ids[..., :0]).shape == (1, 3, 6)


def test_extending_keeps_old_vectors_and_lends_new_ones_their_neighbours_residuals():
    given = texts(40)
    embeddings = Embeddings(given, 6, first_item=10)
    with torch.no_grad():
        embeddings.residual.copy_(texts(40, seed=2))
        embeddings.project.weight += 0.1
    before = embeddings(slice(None)).detach()
    new = torch.cat([given[2:3], texts(2, seed=1)])
    embeddings.extend(new)
    after = embeddings(slice(None)).detach()
    assert len(embeddings) == 43
    torch.testing.assert_close(after[:40], before)
    for row in (40, 41, 42):  # item by item, from the formula
        cosines = torch.nn.functional.cosine_similarity(
            embeddings.words[row], embeddings.words[10:40]
        )
        best = cosines.argsort(descending=True)[:5]
        weights = (cosines[best] / 0.1).exp()
        expected = (weights[:, None] * embeddings.residual[10:40][best]).sum(0) / weights.sum()
        torch.testing.assert_close(embeddings.residual[row], expected)
    assert embeddings.residual.requires_grad
    assert not embeddings.words.requires_grad
    assert embeddings.state_dict().keys() == Embeddings(given, 6).state_dict().keys()


def test_new_items_start_without_residuals_before_training_and_in_an_empty_catalogue():
    for first_item in (0, 9):  # nothing is learned yet; no item is known yet
        embeddings = Embeddings(texts(9), 6, first_item=first_item)
        with torch.no_grad():
            embeddings.residual += float(first_item)
        embeddings.extend(texts(2, seed=1))
        assert embeddings.residual[9:].eq(0).all()


def test_residual_dropout_takes_residuals_of_items_in_training_alone():
    embeddings = Embeddings(texts(400), 6, first_item=100, residual_dropout=0.3)
    with torch.no_grad():
        embeddings.residual += 1.0
    whole = embeddings.eval()(slice(None)).detach()
    words = embeddings.project(embeddings.words).detach()
    found = embeddings.train()(slice(None)).detach()
    gone = (found == words).all(dim=1)
    assert ((found == whole).all(dim=1) | gone).all()  # nothing between, nothing rescaled
    assert not gone[:100].any()
    assert 60 < gone.sum() < 120
    assert not torch.equal((embeddings(slice(None)) == words).all(dim=1), gone)  # drawn anew
    twice = embeddings(torch.tensor([150, 7, 150]))
    assert torch.equal(twice[0], twice[2])  # an item is one item throughout a call
    embeddings.residual_dropout = 0.0
    assert torch.equal(embeddings(slice(None)), whole)


def test_a_narrow_residual_starts_at_nothing_and_moves_vectors_as_far_as_a_full_one():
    """Far: by the length of one step that changes every learned number by the same amount."""
    torch.manual_seed(0)
    given = torch.randn(9, 64)
    full, narrow = Embeddings(given, 64), Embeddings(given, 64, rank=4)
    assert narrow.residual.shape == (9, 4)
    before = full(slice(None)).detach()
    assert torch.equal(narrow(slice(None)).detach(), before)
    with torch.no_grad():
        for embeddings in (full, narrow):
            signs = torch.tensor([1.0, -1.0]).repeat(embeddings.residual.shape[1] // 2)
            embeddings.residual[3] += 0.01 * signs
    steps = [
        (embeddings(slice(None)) - before).detach().norm(dim=1) for embeddings in (full, narrow)
    ]
    torch.testing.assert_close(steps[1], steps[0])
    narrow(torch.tensor([3])).sum().backward()
    assert narrow.residual.grad[3].abs().max() > 0
    assert narrow.widen.weight.grad.abs().max() > 0
    narrow.extend(torch.randn(2, 64))
    assert narrow.residual.shape == (11, 4)
    assert narrow.state_dict().keys() - full.state_dict().keys() == {"widen.weight"}


def test_gradients_are_the_same_to_the_last_bit_for_any_number_of_threads():
    embeddings = Embeddings(torch.randn(50, 64), 64)
    ids = torch.randint(50, (64, 40, 2), generator=torch.Generator().manual_seed(0))
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 4, 4):
            torch.set_num_threads(threads)
            embeddings.residual.grad = None
            (embeddings(ids[..., 0]) * embeddings.learned(ids)).sin().sum().backward()
            found.append(embeddings.residual.grad.clone())
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])


# --- neighbours ------------------------------------------------------------------------------

SHARE = 0.4


def mixed_model(folder, style="token", **options):
    """An untrained model whose residuals are away from zero."""
    head = {"neighbors": {"share": SHARE, "count": 2}}
    config = tiny.run_config(
        "bert",
        style,
        model={"item_head": head, **options},
        data={"knowledge": {"source": str(graph.write(folder))}},
    )
    model = InfluenceModel.build(config, tiny.small_log())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.embeddings.residual += 0.3 * torch.randn(
            model.embeddings.residual.shape, generator=generator
        )
    return model.eval()


def own_vectors(model):
    """(I, H) what the vectors are without neighbours."""
    embeddings = model.embeddings
    return (embeddings.project(embeddings.words) + embeddings.widen(embeddings.residual))[
        model.first_item :
    ].detach()


@pytest.mark.parametrize("options", [{}, {"item_head": {"residual_rank": 4}}])
def test_a_vector_is_its_own_and_its_neighbours(tmp_path, options):
    head = options.get("item_head", {}) | {"neighbors": {"share": SHARE, "count": 2}}
    model = mixed_model(tmp_path, item_head=head)
    own, near = own_vectors(model), graph.facts().neighbours(model.catalogue.ids, 2)
    expected = own.clone()
    for row in range(len(own)):
        if near.weights[row].any():
            theirs = torch.from_numpy(near.weights[row]) @ own[near.codes[row]]
            expected[row] = (1 - SHARE) * own[row] + SHARE * theirs
    assert not torch.allclose(expected[:4], own[:4])
    torch.testing.assert_close(model.item_vectors().detach(), expected)
    ids = torch.tensor([[3, 0], [29, 1]])
    torch.testing.assert_close(model.embeddings(model.first_item + ids).detach(), expected[ids])


def test_training_reaches_the_neighbours_and_the_words_of_the_template_stay_alone(tmp_path):
    model = mixed_model(tmp_path)
    before = model.embeddings(slice(0, model.first_item))
    torch.testing.assert_close(
        before,
        model.embeddings.project(model.embeddings.words[: model.first_item])
        + model.embeddings.residual[: model.first_item],
    )
    model.embeddings(
        torch.tensor([model.first_item + 2])
    ).sum().backward()  # i2, whose neighbour is i0
    moved = model.embeddings.residual.grad.abs().sum(dim=1)[model.first_item :].nonzero()[:, 0]
    assert moved.tolist() == [0, 2]


def test_a_new_item_gets_its_neighbours_without_training(tmp_path):
    model = mixed_model(tmp_path)
    old = model.item_vectors().detach()
    theirs = own_vectors(model)
    twin = Catalogue.from_table(pa.table({"item_id": ["i40", "i41"], "title": ["red", "old lamp"]}))
    known = graph.facts().table
    extra = pa.table(
        [["i40"] * 2, ["film.directed_by", "film.country"], ["ann", "else"], ["", ""]],
        known.column_names,
    )
    model.facts = type(model.facts)(pa.concat_tables([known, extra]))
    near = model.facts.neighbours(twin.ids, 2, among=model.catalogue.ids)
    assert near.codes[0, 0] == 7  # the only old item with "else"
    model.add_items(twin)
    found, own = model.item_vectors().detach(), own_vectors(model)
    torch.testing.assert_close(found[:-2], old)
    expected = (1 - SHARE) * own[-2] + SHARE * torch.from_numpy(near.weights[0]) @ theirs[
        near.codes[0]
    ]
    torch.testing.assert_close(found[-2], expected)
    torch.testing.assert_close(found[-1], own[-1])  # nothing is known of it


@pytest.mark.parametrize("style", ["token", "text"])
def test_it_comes_back_from_disk_with_its_graph(tmp_path, log, style):
    model = mixed_model(tmp_path, style)
    model.save_pretrained(tmp_path / "m")
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    assert loaded.facts.table.equals(model.facts.table)
    new = Catalogue.from_ids(["new lamp"])
    for each in (model, loaded):
        each.add_items(new)
    torch.testing.assert_close(loaded.item_vectors(), model.item_vectors())
    one, other = (next(m.predict(list(log)))[1].item_logits for m in (loaded, model))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    (tmp_path / "m" / "facts.parquet").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks facts.parquet"):
        InfluenceModel.from_pretrained(tmp_path / "m")


def test_by_default_nothing_is_mixed_and_a_graph_alone_changes_nothing(tmp_path, log):
    plain = InfluenceModel.build(tiny.run_config(), log)
    config = tiny.run_config(data={"knowledge": {"source": str(graph.write(tmp_path))}})
    knowing = InfluenceModel.build(config, log)
    assert plain.facts is None
    assert knowing.facts is not None
    for model in (plain, knowing):
        assert not {"embeddings.bags", "embeddings.bag_weights"} & model.state_dict().keys()
    assert torch.equal(plain.item_vectors(), knowing.item_vectors())


def test_neighbours_need_a_graph():
    with pytest.raises(ValueError, match=r"data.knowledge.source for model.item_head.neighbors"):
        tiny.run_config(model={"item_head": {"neighbors": {"share": 0.2}}})


def test_gradients_of_mixed_vectors_are_the_same_for_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    embeddings = Embeddings(torch.randn(50, 64, generator=generator), 64)
    embeddings.mix(
        torch.randint(50, (50, 8), generator=generator), torch.rand(50, 8, generator=generator)
    )
    ids = torch.randint(50, (64, 40), generator=generator)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 4, 4):
            torch.set_num_threads(threads)
            embeddings.residual.grad = None
            embeddings(ids).sin().sum().backward()
            found.append(embeddings.residual.grad.clone())
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_an_item_is_made_of_sums_to_one_and_tokens_before_the_items_are_themselves():
    bags, weights = item_bags(
        graph.facts(), pa.array(["i0", "i9", "i3"]), count=3, share=0.5, first=4, first_item=4
    )
    assert bags.tolist()[1] == [5] * 4
    assert weights.tolist()[1] == [1, 0, 0, 0]
    assert bags[0, :2].tolist() == [4, 6]
    assert weights[0].tolist() == [0.5, 0.5, 0, 0]
    embeddings = Embeddings(torch.randn(7, 6), 6)
    embeddings.mix(bags, weights)
    assert embeddings.bags[:4, 0].tolist() == [0, 1, 2, 3]
    assert embeddings.bag_weights[:4].tolist() == [[1, 0, 0, 0]] * 4


def test_new_items_alone_can_be_mixed(tmp_path):
    """Nothing is mixed in training; items that come later lean on their neighbours."""
    head = {"neighbors": {"share": 0.0, "new_share": SHARE, "count": 2}}
    model = mixed_model(tmp_path, item_head=head)
    old = model.item_vectors().detach()
    assert model.embeddings.bags is None
    torch.testing.assert_close(old, own_vectors(model))
    extra = pa.table([["i40"], ["film.directed_by"], ["ann"], [""]], model.facts.table.column_names)
    model.facts = type(model.facts)(pa.concat_tables([model.facts.table, extra]))
    model.add_items(Catalogue.from_ids(["i40", "i41"]))
    found, own = model.item_vectors().detach(), own_vectors(model)
    near = model.facts.neighbours(pa.array(["i40"]), 2, among=model.catalogue.ids[:30])
    assert near.codes[0].tolist() == [1, 0] or near.codes[0].tolist() == [0, 1]
    theirs = torch.from_numpy(near.weights[0]) @ old[near.codes[0]]
    torch.testing.assert_close(found[30], (1 - SHARE) * own[30] + SHARE * theirs)
    torch.testing.assert_close(found[:30], old)
    torch.testing.assert_close(found[31], own[31])
    model.save_pretrained(tmp_path / "m")
    loaded = InfluenceModel.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(loaded.item_vectors(), model.item_vectors())
    loaded.facts = None
    loaded.add_items(Catalogue.from_ids(["i50"]))  # of which nothing is known
    torch.testing.assert_close(loaded.item_vectors()[:32].detach(), found)


# --- text vectors ----------------------------------------------------------------------------

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
