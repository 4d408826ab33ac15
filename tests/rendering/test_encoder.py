"""Encoded histories against their texts; padded tensors against counts made by hand."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import TemplateError, UnknownNameError
from llm_influence.rendering.encoder import EncodedHistories, Encoder, collate
from llm_influence.rendering.template import ADDABLE, FIELDS, Template, shipped_templates
from llm_influence.rendering.time_words import HOURS, WEEKDAYS, gap_words, times_words
from llm_influence.rendering.token_cache import IdTokenCache, field_words
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.types import Event, History
from tests import tiny
from tests.rendering.tokenizer_families import FAMILIES, tokenizer_of

HOUR = 3600
TEXT_TEMPLATES = ("compact", "compact_zh", "prose", "prose_zh", "titles")
TOKEN_TEMPLATES = ("compact", "compact_zh", "full", "fused", "item", "item_value")

ODD_TEXTS = (
    *("12 Monkeys", "'quoted' \"twice\"", "(1999)", "-x-", "don't;", "a.b,c", "x", "[CLS] a"),
    *("红色的灯", "《书》", "\u3000宽", "😀👨‍👩‍👧 fun", "e\u0301\u0301", "\u200b"),
    *("  two  gaps ", "line\nbreak ", "\x85"),
)
odd_text = st.one_of(st.text(max_size=12), st.sampled_from(ODD_TEXTS))


def log_with_texts(texts: list[str]) -> BehaviorLog:
    ids = pa.array([f"i{n}" for n in range(len(texts))])
    items = Catalogue(ids, texts, texts, pa.table({"item_id": ids}))
    return BehaviorLog.read(tiny.events_table(users=4, items=len(texts)), items=items)


def make(
    log: BehaviorLog, template: str, style: str = "text", family: str = "bert", **limits: int
) -> Encoder:
    chosen = Template.load(template)
    vocabulary = Vocabulary.fit(log, chosen.user_features)
    limits = {"max_tokens": 10_000, **limits}
    return Encoder(chosen, vocabulary, style=style, tokenizer=tokenizer_of(family), **limits)


def of_history(encoded: EncodedHistories, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    span = slice(encoded.offsets[row], encoded.offsets[row + 1])
    return encoded.input_ids[span], encoded.event_index[span], encoded.field_index[span]


def tokenised(encoder: Encoder, history: History) -> list[int]:
    tokenizer = encoder.tokenizer
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    return [start, *tokenizer(encoder.render(history), add_special_tokens=False)["input_ids"]]


# --- the same ids as tokenising the whole text ---------------------------------------------


@pytest.mark.parametrize("template", TEXT_TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_assembled_ids_equal_tokenising_the_whole_text(log, family, template):
    encoder = make(log, template, family=family)
    encoded = encoder.encode(list(log))
    for row, history in enumerate(log):
        assert of_history(encoded, row)[0].tolist() == tokenised(encoder, history)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(odd_text, min_size=12, max_size=12), chinese=st.booleans())
def test_ids_are_equal_whatever_the_items_are_called(family, texts, chinese):
    log = log_with_texts([text or "untitled" for text in texts])
    encoder = make(log, "prose_zh" if chinese else "prose", family=family)
    history = log.at(3)
    assert encoder.encode([history]).input_ids.tolist() == tokenised(encoder, history)


@pytest.mark.parametrize(("style", "template"), [("text", "prose"), ("token", "full")])
def test_encoding_many_equals_encoding_one_by_one(log, style, template):
    encoder = make(log, template, style)
    histories = [*log, log.at(2).keep(slice(0))]
    together = encoder.encode(histories)
    for row, history in enumerate(histories):
        alone = encoder.encode([history])
        for ours, theirs in zip(of_history(together, row), of_history(alone, 0), strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --- the map from tokens to events and fields ----------------------------------------------

SPACED = Template(
    name="spaced",
    history="did:",
    event="{behavior} item {item} : {text} with {value} after {gap} "
    "at {hour} on {weekday} {times} .",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_a_field_spell_the_words_of_that_field(log, family):
    tokenizer = tokenizer_of(family)
    encoder = Encoder(
        SPACED, Vocabulary.fit(log), style="text", tokenizer=tokenizer, max_tokens=999
    )
    history = log["u6"]
    ids, event_index, field_index = of_history(encoder.encode([history]), 0)
    codes = encoder.vocabulary.columns([history], times=True).codes
    gaps, times = codes["gap"], codes["times"]
    for place, event in enumerate(history.events(log.catalogue.titles_by_id(history.item_ids()))):
        moment = datetime.fromtimestamp(event.timestamp, UTC)
        said = {
            "behavior": event.behavior,
            "item": event.item,
            "text": event.title,
            "value": "" if event.value is None else f"{event.value:g}",
            "gap": gap_words()[gaps[place]],
            "hour": f"{moment:%H}:00",
            "weekday": f"{moment:%A}",
            "times": times_words()[times[place]],
        }
        for number, field in enumerate(FIELDS):
            own = ids[(event_index == place) & (field_index == number)]
            spelt, word = (text.lower() for text in (tokenizer.decode(own), said[field]))
            assert "".join(spelt.split()) == "".join(word.split())


@pytest.mark.parametrize(("style", "template"), [("text", "prose"), ("token", "full")])
def test_every_event_has_its_tokens_in_order_and_the_prompt_none(log, style, template):
    encoder = make(log, template, style)
    encoded = encoder.encode(list(log))
    for row, history in enumerate(log):
        _, event_index, field_index = of_history(encoded, row)
        prompt = len(encoder.token_cache.prompt(history.user))
        assert (event_index[:prompt] == -1).all()
        assert (field_index[:prompt] == -1).all()
        assert sorted(set(event_index[prompt:])) == list(range(len(history)))
        assert (np.diff(event_index) >= 0).all()
        line = encoder.template.line_fields
        for event in range(len(history)):
            fields = field_index[event_index == event]
            order = [FIELDS[f] for f in dict.fromkeys(fields[fields >= 0].tolist())]
            unsaid = style == "text" and np.isnan(history.values[event])
            assert order == [f for f in line if not (unsaid and f == "value")]


# --- truncation and gaps -------------------------------------------------------------------


def words_of_gaps(encoder: Encoder, history: History) -> list[str]:
    """Style token: the gaps of a history, as words."""
    ids, _, fields = of_history(encoder.encode([history]), 0)
    return [encoder.token_cache.words[unit] for unit in ids[fields == FIELDS.index("gap")]]


def hourly(*hours: int) -> History:
    return History.from_events(
        "u", [Event(f"i{n}", "click", h * HOUR) for n, h in enumerate(hours)]
    )


@pytest.mark.parametrize("limits", [{"max_events": 3}, {"max_tokens": 60}])
@pytest.mark.parametrize("family", ["bert", "unigram"])
def test_truncation_keeps_whole_recent_events_and_counts_the_rest(log, family, limits):
    whole, short = make(log, "prose", family=family), make(log, "prose", family=family, **limits)
    encoded = short.encode(list(log))
    assert encoded.left_out.max() > 0
    for row, history in enumerate(log):
        left_out = int(encoded.left_out[row])
        assert encoded.num_events[row] + left_out == len(history)
        kept = history.keep(slice(left_out, None))
        assert short.trim(history).timestamps.tolist() == kept.timestamps.tolist()
        assert len(short.trim(kept)) == len(kept)
        for ours, theirs in zip(
            of_history(encoded, row), of_history(whole.encode([kept]), 0), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("room", [20, 33, 47])
def test_no_event_is_left_out_that_would_have_fitted(log, room):
    whole, short = make(log, "titles"), make(log, "titles", max_tokens=room)
    for history in log:
        encoded = short.encode([history])
        left_out = int(encoded.left_out[0])
        assert len(encoded.input_ids) <= room
        if left_out:
            one_more = whole.encode([history.keep(slice(left_out - 1, None))])
            assert len(one_more.input_ids) > room


def test_a_gap_is_measured_from_the_previous_kept_event(log):
    encoder = make(log, "full", "token")
    history = hourly(0, 1, 3, 9)
    assert words_of_gaps(encoder, history) == ["gap start", "gap 1h", "gap 2h", "gap 6h"]
    without = history.keep(np.array([True, False, True, True]))
    assert words_of_gaps(encoder, without) == ["gap start", "gap 3h", "gap 6h"]


def test_added_fields_ride_on_the_last_token_of_their_event(log):
    template = Template(name="all", event="{item}", added=ADDABLE)
    encoder = Encoder(template, Vocabulary.fit(log), style="token")
    units, added = encoder.token_cache.words, encoder.template.added
    whole = log.at(7)
    for history in (whole, whole.keep(np.arange(len(whole)) % 3 != 1)):
        encoded = encoder.encode([history])
        codes = encoder.vocabulary.columns([history], times=True).codes
        np.testing.assert_array_equal(encoded.added_ids[0], [-1] * len(added))  # the prompt
        for event, ids in enumerate(encoded.added_ids[1:]):
            for field, unit in zip(added, ids, strict=True):
                words = field_words(encoder.vocabulary, encoder.template, field)
                word = words[codes[field][event]]
                said = {
                    "behavior": word,
                    "gap": f"gap {word}",
                    "value": f"value {word or 'unknown'}",
                    "hour": f"hour {word}",
                    "weekday": word,
                    "times": word,
                }
                assert units[unit] == said[field]


def test_hours_and_weekdays_have_ids_only_where_the_template_uses_them(log):
    vocabulary = Vocabulary.fit(log)
    plain = IdTokenCache(Template(name="plain", event="{item}"), vocabulary)
    timed = IdTokenCache(
        Template(name="timed", event="{item} {hour}", added=("weekday",)), vocabulary
    )
    assert "Friday" not in plain.words
    assert timed.first_item == plain.first_item + HOURS + WEEKDAYS


def test_the_first_event_that_fits_starts_the_history(log):
    encoder = make(log, "full", "token", max_events=2)
    assert words_of_gaps(encoder, hourly(0, 1, 3, 9)) == ["gap start", "gap 6h"]
    assert "after start;" in make(log, "prose").render(hourly(0, 1).keep(slice(1, None)))


@pytest.mark.parametrize(("style", "template"), [("text", "prose"), ("token", "full")])
def test_an_empty_history_is_the_prompt_alone(log, style, template):
    encoder = make(log, template, style)
    empty = log.at(0).keep(slice(0))
    encoded = encoder.encode([empty])
    np.testing.assert_array_equal(encoded.input_ids, encoder.token_cache.prompt(empty.user))
    assert len(encoded.input_ids) > 0
    assert encoded.event_index.tolist() == [-1] * len(encoded.input_ids)
    assert encoded.num_events.tolist() == encoded.left_out.tolist() == [0]


# --- templates and users -------------------------------------------------------------------


def test_every_shipped_template_renders_in_the_styles_it_fits(log):
    assert set(shipped_templates()) == set(TEXT_TEMPLATES) | set(TOKEN_TEMPLATES)
    for name in shipped_templates():
        for style, fitting in (("text", TEXT_TEMPLATES), ("token", TOKEN_TEMPLATES)):
            if name in fitting:
                encoded = make(log, name, style).encode(list(log))
                assert encoded.num_events.tolist() == log.lengths.tolist()
            else:
                with pytest.raises(TemplateError, match="style"):
                    make(log, name, style)


AGED = Template(name="aged", history="aged {user.age} did:", event="{behavior} {item}")


def test_user_features_stand_in_the_prompt_of_both_styles(log):
    vocabulary = Vocabulary.fit(log, AGED.user_features)
    words = Encoder(AGED, vocabulary, style="text", tokenizer=tokenizer_of("bert"))
    assert words.render(log["u1"]).startswith("aged 21 did: ")
    units = Encoder(AGED, vocabulary, style="token")
    for user, phrase in (("u1", "age 21"), ("u2", "age 22")):
        ids, event_index, _ = of_history(units.encode([log[user]]), 0)
        assert [units.token_cache.words[unit] for unit in ids[event_index < 0]] == [
            "history",
            phrase,
        ]


def test_an_unknown_user_feature_reads_unknown(log):
    vocabulary = Vocabulary.fit(log, AGED.user_features)
    words = Encoder(AGED, vocabulary, style="text", tokenizer=tokenizer_of("bert"))
    units = Encoder(AGED, vocabulary, style="token")
    stranger = History.from_events("u", [Event("i1", "click", 0)])
    assert words.render(stranger).startswith("aged unknown did: ")
    for age in ("", "99"):
        user = History.from_events("u", [Event("i1", "click", 0)], user={"age": age})
        assert units.token_cache.words[units.encode([user]).input_ids[1]] == "age unknown"


# --- what is refused -----------------------------------------------------------------------


def test_an_event_longer_than_the_context_is_refused_with_its_place(log):
    encoder = make(log, "prose", max_tokens=12)
    with pytest.raises(
        TemplateError,
        match=r"'u3', kept event 0: one event takes \d+ tokens, the context holds \d+",
    ):
        encoder.encode([log["u3"]])


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (Event("i1", "clik", 0), "'clik'.*did you mean 'click'"),
        (Event("nope", "click", 0), "'nope'"),
    ],
)
@pytest.mark.parametrize(("style", "template"), [("text", "prose"), ("token", "full")])
def test_an_unknown_name_is_refused_with_user_and_event(log, style, template, event, names):
    history = History.from_events("someone", [Event("i1", "click", -5), event])
    with pytest.raises(UnknownNameError, match=f"'someone', event 1: .*{names}"):
        make(log, template, style).encode([log.at(0), history])


def test_an_event_without_any_word_is_refused(log):
    template = Template(name="values", history="values:", event="{value}")
    encoder = Encoder(template, Vocabulary.fit(log), style="text", tokenizer=tokenizer_of("bert"))
    with pytest.raises(TemplateError, match="no token"):
        encoder.encode([History.from_events("u", [Event("i1", "click", 0)])])


def test_a_tokenizer_that_merges_across_spaces_is_refused(log):
    """Even one that leaves the first space alone, where a phrase begins while it is cut alone."""
    texts = [make(log, "prose").render(history) for history in log]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300))
    merging = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert any(" " in token.strip() for token in merging.get_vocab())
    with pytest.raises(TemplateError, match="never merges across a space"):
        Encoder(Template.load("prose"), Vocabulary.fit(log), style="text", tokenizer=merging)


def test_style_text_needs_a_tokenizer_and_style_token_has_no_text(log):
    with pytest.raises(TemplateError, match="no tokenizer"):
        Encoder(SPACED, Vocabulary.fit(log), style="text")
    with pytest.raises(TemplateError, match="has no text"):
        make(log, "full", "token").render(log.at(0))


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
    records=np.arange(20).reshape(4, 5),
    gap=np.array([-1, 7]),
)


def test_padding_is_invisible_and_belongs_to_no_event():
    batch = collate(ENCODED)
    assert batch.input_ids.tolist() == [[7, 8, 10, 20, 21, 22, 30, 31], [9, 11, 12, 0, 0, 0, 0, 0]]
    assert batch.attention_mask.sum(dim=1).tolist() == [8, 3]
    assert batch.event_index[1].tolist() == [-1, 0, 0, -1, -1, -1, -1, -1]
    assert batch.field_index[1].tolist() == [-1, 0, 1, -1, -1, -1, -1, -1]
    assert batch.added_ids[1, :, 0].tolist() == [-1, -1, 6, -1, -1, -1, -1, -1]
    assert batch.num_events.tolist() == [3, 1]


def test_records_stand_by_event_and_no_item_fills_the_rest():
    batch = collate(ENCODED, np.array([1, 0]))
    assert batch.records[0].tolist() == [[15, 16, 17, 18, 19], [-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]
    assert batch.records[1].tolist() == ENCODED.records[:3].tolist()
    assert batch.gap.tolist() == [7, -1]


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
        records=np.empty((0, 5), dtype=np.int64),
        gap=np.array([-1]),
    )
    batch = collate(empty)
    assert batch.ends.tolist() == [[1]]
    assert batch.last().tolist() == [1]
    assert batch.event_sums(torch.ones(1, 2))[0].shape == (1, 0)
