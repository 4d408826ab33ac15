"""Fit of a memory: known causes, gates of a known process, folds, sparse rows."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from benchmarks.prediction.excitation_log import BEHAVIORS, make_log
from llm_influence.config.model import MemoryConfig
from llm_influence.modeling import memory_fit
from llm_influence.modeling.gates import AGE, DISTANCE, ITEM
from llm_influence.modeling.memory_fit import Credits, Questions, fit_memory, questions, strongest
from llm_influence.rendering.encoder import NO_ITEM
from llm_influence.rendering.vocabulary import Vocabulary
from tests import tiny


def test_a_question_holds_the_events_before_it_the_latest_first():
    log = tiny.small_log()
    asked = questions(
        log, Vocabulary.fit(log), most=10**6, reach=3, folds=2, seed=0, to_query=False
    )
    place = 0
    for history in log:
        for event in range(1, len(history)):
            record = asked.records[place]
            before = history.keep(slice(max(0, event - 3), event))
            size = len(before)
            assert asked.targets[place] == history.items[event]
            assert record[:size, ITEM].tolist() == before.items[::-1].tolist()
            assert (record[size:, ITEM] == NO_ITEM).all()
            assert record[:size, DISTANCE].tolist() == list(range(size))
            ages = history.timestamps[event - 1] - before.timestamps
            assert record[:size, AGE].tolist() == ages[::-1].tolist()
            place += 1
    assert place == len(asked.targets)


def test_a_pair_is_predicted_by_the_credits_of_other_folds():
    """Item 0 leads to item 1 three times in fold 0 and once in fold 1, to item 2 once there."""
    records = np.zeros((5, 1, 5), dtype=np.int64)
    asked = Questions(records, np.array([1, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 1]))
    pair, row = Credits(asked, 3, 2).rates(np.ones(5))
    np.testing.assert_allclose(pair, [1, 1, 1, 3, 0])
    np.testing.assert_allclose(row, [2, 2, 2, 3, 3])
    matrix = Credits(asked, 3, 2).matrix(np.ones(5), 2.0, neighbors=1)
    np.testing.assert_allclose(matrix.toarray()[0], [0, 4 / 7, 0])


def test_the_strongest_links_of_a_row_stay():
    dense = np.array([[1.0, -3.0, 2.0], [0.0, 0.5, 0.0]])
    kept = strongest(csr_array(dense), 2).toarray()
    np.testing.assert_allclose(kept, [[0, -3, 2], [0, 0.5, 0]])


@pytest.fixture(scope="module")
def known():
    """A log of the Hawkes process, and the memory fitted on all of it."""
    made = make_log("hawkes", 1, users=1500, items=60, length=40)
    vocabulary = Vocabulary.fit(made.log)
    memory = fit_memory(made.log, vocabulary, MemoryConfig(associations=False), reach=40)
    return made, memory


@pytest.mark.slow
def test_the_gates_of_a_known_process_are_recovered(known):
    _, memory = known
    gates = {gate.behavior: gate for gate in memory.gates()}
    top = max(weight for _, weight, _ in BEHAVIORS.values())
    assert gates["impression"].weight < 0.05
    for name, (_, weight, half_life) in BEHAVIORS.items():
        if weight > 2:  # of weaker ones 800 users know too little
            assert gates[name].weight == pytest.approx(weight / top, rel=0.25)
            assert gates[name].half_life == pytest.approx(half_life, rel=0.3)
    assert bool(memory.to_query)  # the process counts ages to the next event


@pytest.mark.slow
def test_causes_of_a_known_process_are_found(known):
    made, memory = known
    last = made.items.shape[1] - 1
    rows = np.flatnonzero(made.parents[:, last] >= 0)
    records = torch.zeros(len(rows), last, 5, dtype=torch.int64)
    columns = {
        0: made.items[rows, :last],
        1: made.behaviors[rows, :last],
        3: made.times[rows, last, None] - made.times[rows, :last],
        4: np.broadcast_to(np.arange(last)[::-1], (len(rows), last)),
    }
    for place, column in columns.items():
        records[..., place] = torch.from_numpy(np.ascontiguousarray(column))
    targets = torch.from_numpy(made.items[rows, last])
    causes = memory.causes(records, torch.ones(records.shape[:2]), targets)[0].numpy()
    own = causes[np.arange(len(rows)), made.parents[rows, last]][:, None]
    better = (causes < own).mean(axis=1) + (causes == own).mean(axis=1) / 2
    assert better.mean() > 0.95


def test_the_same_seed_gives_the_same_memory(monkeypatch):
    monkeypatch.setattr(memory_fit, "ROUNDS", 3)
    log = tiny.small_log()
    one, two = (
        fit_memory(log, Vocabulary.fit(log), MemoryConfig(), reach=5, seed=4) for _ in range(2)
    )
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], rtol=0, atol=0)
