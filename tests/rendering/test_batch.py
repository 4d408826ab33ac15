"""Padded tensors against counts made by hand."""

import numpy as np
import pytest
import torch

from llm_influence.rendering.batch import collate
from llm_influence.rendering.encoder import EncodedHistories

# Two histories: prompt of 2 and events of 1, 3, 2 tokens; prompt of 1 and one event of 2 tokens.
ENCODED = EncodedHistories(
    input_ids=np.array([7, 8, 10, 20, 21, 22, 30, 31, 9, 11, 12]),
    event_index=np.array([-1, -1, 0, 1, 1, 1, 2, 2, -1, 0, 0]),
    field_index=np.array([-1, -1, 1, 0, 1, -1, 1, 3, -1, 0, 1]),
    added_ids=np.array([-1, -1, 5, -1, -1, 6, -1, 5, -1, -1, 6])[:, None],
    offsets=np.array([0, 8, 11]),
    num_events=np.array([3, 1]),
    left_out=np.array([0, 0]),
    when=np.array([0, 4]),
)


def test_padding_is_invisible_and_belongs_to_no_event():
    batch = collate(ENCODED)
    assert batch.input_ids.tolist() == [[7, 8, 10, 20, 21, 22, 30, 31], [9, 11, 12, 0, 0, 0, 0, 0]]
    assert batch.attention_mask.sum(dim=1).tolist() == [8, 3]
    assert batch.event_index[1].tolist() == [-1, 0, 0, -1, -1, -1, -1, -1]
    assert batch.field_index[1].tolist() == [-1, 0, 1, -1, -1, -1, -1, -1]
    assert batch.added_ids[1, :, 0].tolist() == [-1, -1, 6, -1, -1, -1, -1, -1]
    assert batch.num_events.tolist() == [3, 1]


def test_ends_are_the_last_tokens_of_prompt_and_events():
    batch = collate(ENCODED)
    assert batch.ends.tolist() == [[1, 2, 5, 7], [0, 2, 0, 0]]
    assert batch.last().tolist() == [7, 2]


def test_rows_are_chosen_in_the_given_order():
    batch = collate(ENCODED, np.array([1, 0, 1]))
    assert batch.num_events.tolist() == [1, 3, 1]
    assert batch.input_ids[1].tolist() == [7, 8, 10, 20, 21, 22, 30, 31]
    alone = collate(ENCODED, np.array([1]))
    assert alone.input_ids.tolist() == [[9, 11, 12]]
    assert alone.ends.tolist() == [[0, 2]]


def test_hidden_events_are_invisible_and_the_last_visible_token_predicts():
    hidden = collate(ENCODED).hide(torch.tensor([[True, True, False], [False, False, False]]))
    assert hidden.attention_mask[0].tolist() == [True] * 6 + [False] * 2
    assert hidden.attention_mask[1].tolist() == [True] + [False] * 7
    assert hidden.last().tolist() == [5, 0]
    middle = collate(ENCODED).hide(torch.tensor([[True, False, True], [True, True, True]]))
    assert middle.attention_mask[0].tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert middle.attention_mask[1].tolist() == [True] * 3 + [False] * 5
    assert middle.last().tolist() == [7, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_token_values_add_up_to_events_and_prompt(dtype):
    batch = collate(ENCODED)
    values = torch.tensor([[1, 2, 4, 8, 16, 32, 64, 128], [1, 2, 4, 0, 0, 0, 0, 0]], dtype=dtype)
    events, prompt = batch.event_sums(values)
    assert events.tolist() == [[4, 56, 192], [6, 0, 0]]
    assert prompt.tolist() == [3, 1]
    assert events.dtype == dtype


def test_histories_without_events_are_prompts_alone():
    empty = EncodedHistories(
        input_ids=np.array([7, 8]),
        event_index=np.array([-1, -1]),
        field_index=np.array([-1, -1]),
        added_ids=np.empty((2, 0), dtype=np.int64),
        offsets=np.array([0, 2]),
        num_events=np.array([0]),
        left_out=np.array([0]),
        when=np.array([0]),
    )
    batch = collate(empty)
    assert batch.ends.tolist() == [[1]]
    assert batch.last().tolist() == [1]
    assert batch.event_sums(torch.ones(1, 2))[0].shape == (1, 0)
