"""A tokenizer of the log's own words and a decoder from nothing."""

import hashlib

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from llm_influence.config.model import ScratchConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, OutputError
from llm_influence.modeling.build import make_backbone
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import Encoder, collate
from llm_influence.rendering.template import Template
from llm_influence.rendering.time_words import gap_words
from llm_influence.rendering.vocabulary import Vocabulary
from tests import tiny

SMALL = ScratchConfig(vocab_size=900, layers=2, width=32, heads=2, context=256)
NOUNS = ("红色的台灯", "木制书桌", "科幻电影", "旅行背包", "蓝牙耳机", "Coffee mug")
WHERE = ("客厅", "卧室", "户外", "Paris", "上海")


def chinese_log() -> BehaviorLog:
    """Items in Chinese, some with English; one whose characters stand nowhere else."""
    titles = [f"{WHERE[n % 5]} {NOUNS[n % 6]} {n}" for n in range(29)] + ["饕餮 é 😀 «Ünïcode»"]
    ids = [f"i{n}" for n in range(30)]
    items = pa.table({"item_id": ids, "title": titles})
    return BehaviorLog.read(tiny.events_table(users=20), items=items)


@pytest.fixture(scope="module")
def log():
    return chinese_log()


@pytest.fixture(scope="module")
def made(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch") / "own"
    return make_backbone(log, Template.load("prose_zh"), SMALL, folder)


@pytest.fixture(scope="module")
def tokenizer(made):
    return AutoTokenizer.from_pretrained(made.folder)


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_no_title_or_behaviour_is_unknown_and_pieces_decode_back(log, tokenizer):
    behaviors = list(Template.load("prose_zh").behaviors.values())
    texts = [*log.catalogue.texts, *behaviors, "从未见过的 標題 🎬", "naïve  déjà", "x" * 300]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())
    words = [word for text in (*NOUNS, *WHERE, "点击", "加购", "购买") for word in text.split()]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)  # no letters
    assert tokenizer.tokenize("標")[1:] == ["<0xE6>", "<0xA8>", "<0x99>"]  # its UTF-8


def test_the_pieces_are_those_of_sentencepiece(log, made, tokenizer):
    import sentencepiece

    model = str(made.folder / "sentencepiece.model")
    original = sentencepiece.SentencePieceProcessor(model_file=model)
    encoder = Encoder(
        Template.load("prose_zh"), Vocabulary.fit(log), style="text", tokenizer=tokenizer
    )
    for history in log:
        text = encoder.render(history)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text)


@pytest.mark.parametrize("template", ["prose_zh", "compact_zh", "prose"])
def test_assembled_ids_equal_tokenising_the_whole_text(log, tokenizer, template):
    encoder = Encoder(
        Template.load(template),
        Vocabulary.fit(log),
        style="text",
        tokenizer=tokenizer,
        max_tokens=10_000,
    )
    for history in log:
        ids = encoder.encode([history]).input_ids.tolist()
        whole = tokenizer(encoder.render(history), add_special_tokens=False)["input_ids"]
        assert ids == [tokenizer.bos_token_id, *whole]


@pytest.mark.parametrize("style", ["text", "token"])
def test_the_folder_is_a_backbone_that_trains(log, made, style):
    rendering = {"template": "prose_zh"} if style == "text" else {}
    source = {"backbone": str(made.folder)}
    config = tiny.run_config("bert", style, rendering=rendering, model=source)
    model = InfluenceModel.build(config, log)
    backbone = model.backbone
    assert (backbone.kind, backbone.width, backbone.context) == ("decoder", 32, 256)
    prediction = model(collate(model.encoder.encode([log.at(0), log.at(5)])))
    every = (prediction.item_logits, prediction.behavior_logits)
    sum(logits.square().mean() for logits in every).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert len(model.recommend(log.at(0), 3)) == 3


def test_the_same_seed_gives_the_same_files_and_another_other_weights(log, made, tmp_path):
    again = make_backbone(log, Template.load("prose_zh"), SMALL, tmp_path / "again")
    assert sums(again.folder) == sums(made.folder)
    other = SMALL.model_copy(update={"seed": 1})
    another = make_backbone(log, Template.load("prose_zh"), other, tmp_path / "other")
    assert sums(another.folder)["model.safetensors"] != sums(made.folder)["model.safetensors"]


def test_every_event_every_item_and_every_word_is_read_once(log, made):
    vocabulary = Vocabulary.fit(log)
    bare = 3  # words of the template that hold no field
    words = [*vocabulary.behaviors, *vocabulary.values.words(), *gap_words("zh")]
    shown = bare + len(words) + 2 * len(log.catalogue)
    assert made.lines == 2 * shown + log.num_events + len(log)
    assert made.vocabulary <= SMALL.vocab_size


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": 300}, ConfigError, "no tokenizer of 300 pieces.*raise --vocab-size"),
        ({"width": 30, "heads": 4}, ConfigError, "width 30 does not fit 4 heads.*--width 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(log, tmp_path, change, error, message):
    config = SMALL.model_copy(update=change)
    with pytest.raises(error, match=message):
        make_backbone(log, Template.load("prose_zh"), config, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(log, made, tmp_path):
    before = sums(made.folder)
    with pytest.raises(OutputError, match="the folder is not empty"):
        make_backbone(log, Template.load("prose_zh"), SMALL, made.folder)
    assert sums(made.folder) == before
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        make_backbone(log, Template.load("prose_zh"), SMALL, tmp_path / "file" / "own")
