"""Methods compared on a tiny model."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from llm_influence import Contrast, Explainer
from llm_influence.attribution.methods import METHODS, LeaveOneOut
from llm_influence.attribution.registry import Attribution
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.metrics import seen_items, target_ranks
from llm_influence.faithfulness.evaluate import (
    ComparedMethod,
    FaithfulnessOptions,
    compared_method,
    evaluate_faithfulness,
    jitter_gaps,
    jittered,
    methods_compared,
    scrambled,
)
from llm_influence.faithfulness.games import rank_target
from llm_influence.modeling.model import InfluenceModel
from tests import tiny
from tests.attribution.stand_ins import bag_model, typed

METHODS_COMPARED = [
    LeaveOneOut(),
    compared_method("integrated_gradients", {"steps": 4}),
    "attention_rollout",
]
BASELINES = [name for name, spec in METHODS.items() if spec.family == "baseline"]


@pytest.fixture(scope="module")
def bert():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def histories():
    log = tiny.small_log()
    return [log[user] for user in ("u0", "u7", "u2", "u3")]


@pytest.fixture(scope="module")
def comparison(bert, histories):
    options = FaithfulnessOptions(check_removal="mask", masks=16)
    return evaluate_faithfulness(bert, histories, METHODS_COMPARED, options, batch_size=3)


def test_every_method_and_every_baseline_has_every_metric_under_both_removals(comparison):
    labels = ["leave_one_out", "integrated_gradients", "attention_rollout", *BASELINES]
    assert list(comparison.methods) == labels
    assert list(comparison.baselines) == BASELINES
    assert comparison.removals == ["drop", "mask"]
    for removal in comparison.removals:
        for method in labels:
            for metric in [*comparison.metrics, "deletion@10", "insertion@100", "evaluations"]:
                assert comparison.values(method, metric, removal).shape == (4,)
    assert {"lds", "abpc", "sensitivity", "randomisation", "pos@10,5"} <= set(comparison.metrics)


def test_batches_change_nothing(bert, histories, comparison):
    options = FaithfulnessOptions(masks=16)
    alone = evaluate_faithfulness(bert, histories, METHODS_COMPARED, options, batch_size=1)
    names = ("history", "user_id", "removal", "method", "metric")
    order = [(name, "ascending") for name in names]
    dropped = comparison.rows.filter(pc.equal(comparison.rows["removal"], "drop"))
    ours, theirs = dropped.sort_by(order), alone.rows.sort_by(order)
    assert ours.select(names).equals(theirs.select(names))
    np.testing.assert_allclose(
        ours["value"].to_numpy(), theirs["value"].to_numpy(), rtol=1e-2, atol=1e-3
    )


def test_the_same_seed_gives_the_same_rows_and_another_one_others(bert, histories, comparison):
    options = FaithfulnessOptions(metrics=("lds",), masks=16)
    rows = [
        evaluate_faithfulness(bert, histories[:2], [], each).rows["value"].to_numpy()
        for each in (options, options, FaithfulnessOptions(metrics=("lds",), masks=16, seed=1))
    ]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()


def test_evaluations_are_those_of_the_method_alone(bert, histories, comparison):
    alone = Explainer(bert, "leave_one_out").explain(histories)
    assert comparison.values("leave_one_out", "evaluations").tolist() == [
        i.quality.evaluations for i in alone
    ]


def test_sets_that_two_methods_need_are_computed_once(bert, histories, monkeypatch):
    rows = []
    real = InfluenceModel.forward
    monkeypatch.setattr(
        InfluenceModel,
        "forward",
        lambda self, batch, vectors=None: (
            rows.append(len(batch.input_ids)),
            real(self, batch, vectors),
        )[1],
    )

    def computed(methods):
        rows.clear()
        options = FaithfulnessOptions(metrics=("deletion_auc",))
        evaluate_faithfulness(bert, histories, methods, options)
        return sum(rows)

    once = computed(["leave_one_out"])
    assert computed(["leave_one_out", compared_method("leave_one_out", label="again")]) == once


def test_exact_scores_of_a_linear_model_are_perfect():
    model = bag_model()
    histories = [typed("i3", "i9", "i4", "i12", "i5"), typed("i1", "i2", "i7", "i8")]
    names = ("lds", "infidelity", "completeness_gap", "exact_spearman")
    options = FaithfulnessOptions(metrics=names, target=Contrast("i20", "i21"))
    result = evaluate_faithfulness(model, histories, ["leave_one_out"], options)
    for name, perfect in zip(names, (1, 0, 0, 1), strict=True):
        np.testing.assert_allclose(result.values("leave_one_out", name), perfect, atol=1e-4)


def test_a_cut_history_is_explained_as_if_there_had_been_no_more(bert, histories):
    cut = [history.keep(slice(-3, None)) for history in histories]
    options = FaithfulnessOptions(metrics=("deletion_auc", "counterfactual_share"), last=3)
    comparison = evaluate_faithfulness(bert, histories, [], options)
    whole = evaluate_faithfulness(bert, cut, [], FaithfulnessOptions(metrics=options.metrics))
    assert comparison.rows.equals(whole.rows)
    assert not np.isnan(comparison.values("random", "counterfactual_share")).any()


def test_methods_that_do_not_read_the_model_fail_the_randomisation_test(comparison):
    for name in ("random", "recency"):
        np.testing.assert_allclose(comparison.values(name, "randomisation"), 1)
        np.testing.assert_array_equal(comparison.values(name, "sensitivity"), 0)
    assert comparison.values("leave_one_out", "randomisation").mean() < 0.8
    assert (comparison.values("leave_one_out", "sensitivity") > 0).any()


def test_scrambled_weights_are_the_same_numbers_and_come_back(bert):
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    with scrambled(bert, seed=3):
        for name, weight in bert.named_parameters():
            if weight.numel() > 50:
                assert not torch.equal(weight, before[name])
            assert torch.equal(weight.flatten().sort()[0], before[name].flatten().sort()[0])
    with pytest.raises(KeyboardInterrupt), scrambled(bert):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())


def test_a_jitter_keeps_events_order_and_the_last_time(histories):
    history = histories[1]
    moved = jitter_gaps(history, 0, seed=1)
    assert moved.timestamps[-1] == history.timestamps[-1]
    ratio = np.diff(moved.timestamps) / np.diff(history.timestamps)
    assert (ratio != 1).any()
    assert (np.abs(np.log(ratio)) < 0.5).all()
    assert (moved.items == history.items).all()
    assert (moved.timestamps != jitter_gaps(history, 1, seed=1).timestamps).any()
    assert (moved.timestamps == jitter_gaps(history, 0, seed=1).timestamps).all()


def test_a_template_without_gaps_has_no_sensitivity_nor_one_with_hours(tmp_path, histories):
    assert jittered(bag_model("item"), histories, 2, 0) == []
    timed = tmp_path / "timed.yaml"
    timed.write_text("{name: timed, event: '{item} {gap}', added: [hour]}")
    assert jittered(bag_model(str(timed)), histories, 2, 0) == []
    assert len(jittered(tiny.tiny_model(), histories, 2, 0)) == 2


@pytest.mark.parametrize("name", ["top1", "item", "behavior"])
def test_a_rank_is_the_place_among_alternatives(bert, histories, name):
    target = {"top1": "top1", "item": histories[0].item_ids()[0], "behavior": "cart"}[name]
    bound = bind(target, bert, histories)
    ranks = ValueFunction(bert, histories, rank_target(bound, bert, histories)).ends()[1]
    scores = bert.score(histories)
    if name == "top1":
        assert (ranks == 1).all()
    elif name == "behavior":
        assert set(ranks) <= {1, 2, 3}
    else:
        code = int(bert.catalogue.index([target])[0])
        seen = seen_items([bert.encoder.vocabulary.item_codes(history) for history in histories])
        held = seen.masked_fill(seen == code, -1)
        expected = target_ranks(scores, torch.full((4,), code), held)
        assert ranks.tolist() == expected.tolist()


def test_removed_items_do_not_become_candidates_of_ranks(bert, histories):
    bound = bind("top1", bert, histories[:1])
    values = ValueFunction(bert, histories[:1], rank_target(bound, bert, histories[:1]))
    none = np.zeros((1, len(histories[0])), dtype=bool)
    candidates = len(bert.catalogue) - len(set(histories[0].item_ids()))
    assert 1 <= values([none])[0][0] <= candidates


def test_a_function_can_take_part(bert, histories):
    def by_value(task):
        task.values.ends()
        base, full = task.values.ends()  # known by now: no more evaluations
        scores = [np.nan_to_num(history.values.astype(float)) for history in task.histories]
        return Attribution(
            scores, np.zeros(len(scores)), base, full, task.values.evaluations.copy()
        )

    mine = ComparedMethod("by_value", by_value, in_target_units=False)
    result = evaluate_faithfulness(
        bert, histories[:2], [mine], FaithfulnessOptions(metrics=("lds",))
    )
    assert result.values("by_value", "evaluations").tolist() == [2, 2]
    assert np.isfinite(result.values("by_value", "lds")).all()


def test_a_model_in_training_is_left_as_it_was(bert, histories, comparison):
    bert.train()
    try:
        options = FaithfulnessOptions(metrics=("deletion_auc",))
        result = evaluate_faithfulness(bert, histories, ["leave_one_out"], options)
        assert all(module.training for module in bert.modules())
    finally:
        bert.eval()
    np.testing.assert_allclose(
        result.values("leave_one_out", "deletion_auc"),
        comparison.values("leave_one_out", "deletion_auc"),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaithfulnessOptions(removal="erase"), "unknown removal 'erase'"),
        (lambda: FaithfulnessOptions(check_removal="erase"), "unknown removal 'erase'"),
        (lambda: FaithfulnessOptions(metrics=("ldss",)), "unknown metric 'ldss'"),
        (lambda: FaithfulnessOptions(masks=2), "masks is 2"),
        (lambda: methods_compared(["shapely"], ["drop"]), "unknown method 'shapely'"),
        (lambda: methods_compared(["recency", "recency"], ["drop"]), "'recency' stands twice"),
        (lambda: compared_method("recency", {"steps": 3}), "unknown option 'steps'"),
        (
            lambda: methods_compared(
                [ComparedMethod("mine", run=None, removals=("drop",))], ["drop", "mask"]
            ),
            "'mine' cannot use removal 'mask'",
        ),
    ],
)
def test_wrong_options_and_methods_are_refused_at_once(make, message):
    with pytest.raises(ExplanationError, match=message):
        make()


def test_no_history_and_a_user_without_events_are_refused(bert, histories):
    for empty in ([], [histories[0].keep(slice(0, 0))]):
        with pytest.raises(ExplanationError, match=r"no history|has no event"):
            evaluate_faithfulness(bert, empty, [])
