"""Item vectors mixed with those of neighbours: closed form, new items, and nothing by default."""

import pyarrow as pa
import pytest
import torch

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ModelFolderError
from llm_influence.modeling.embeddings import Embeddings, item_bags
from llm_influence.modeling.model import InfluenceModel
from tests import graph, tiny

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
        model.units.residual += 0.3 * torch.randn(model.units.residual.shape, generator=generator)
    return model.eval()


def own_vectors(model):
    """(I, H) what the vectors are without neighbours."""
    units = model.units
    return (units.project(units.words) + units.widen(units.residual))[model.first_item :].detach()


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
    torch.testing.assert_close(model.units(model.first_item + ids).detach(), expected[ids])


def test_training_reaches_the_neighbours_and_the_words_of_the_template_stay_alone(tmp_path):
    model = mixed_model(tmp_path)
    before = model.units(slice(0, model.first_item))
    torch.testing.assert_close(
        before,
        model.units.project(model.units.words[: model.first_item])
        + model.units.residual[: model.first_item],
    )
    model.units(torch.tensor([model.first_item + 2])).sum().backward()  # i2, whose neighbour is i0
    moved = model.units.residual.grad.abs().sum(dim=1)[model.first_item :].nonzero()[:, 0]
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
        assert not {"units.bags", "units.bag_weights"} & model.state_dict().keys()
    assert torch.equal(plain.item_vectors(), knowing.item_vectors())


def test_neighbours_need_a_graph():
    with pytest.raises(ValueError, match=r"data.knowledge.source for model.item_head.neighbors"):
        tiny.run_config(model={"item_head": {"neighbors": {"share": 0.2}}})


def test_gradients_of_mixed_vectors_are_the_same_for_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    units = Embeddings(torch.randn(50, 64, generator=generator), 64)
    units.mix(
        torch.randint(50, (50, 8), generator=generator), torch.rand(50, 8, generator=generator)
    )
    ids = torch.randint(50, (64, 40), generator=generator)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 4, 4):
            torch.set_num_threads(threads)
            units.residual.grad = None
            units(ids).sin().sum().backward()
            found.append(units.residual.grad.clone())
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_an_item_is_made_of_sums_to_one_and_units_before_the_items_are_themselves():
    bags, weights = item_bags(
        graph.facts(), pa.array(["i0", "i9", "i3"]), count=3, share=0.5, first=4, first_item=4
    )
    assert bags.tolist()[1] == [5] * 4
    assert weights.tolist()[1] == [1, 0, 0, 0]
    assert bags[0, :2].tolist() == [4, 6]
    assert weights[0].tolist() == [0.5, 0.5, 0, 0]
    units = Embeddings(torch.randn(7, 6), 6)
    units.mix(bags, weights)
    assert units.bags[:4, 0].tolist() == [0, 1, 2, 3]
    assert units.bag_weights[:4].tolist() == [[1, 0, 0, 0]] * 4


def test_new_items_alone_can_be_mixed(tmp_path):
    """Nothing is mixed in training; items that come later lean on their neighbours."""
    head = {"neighbors": {"share": 0.0, "new_share": SHARE, "count": 2}}
    model = mixed_model(tmp_path, item_head=head)
    old = model.item_vectors().detach()
    assert model.units.bags is None
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
