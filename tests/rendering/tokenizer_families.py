"""Tokenizers of every family that splits text its own way, trained in memory."""

# ruff: noqa: S106 - the tokens here are words, no secrets

import functools

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.tiny import BEHAVIORS, WORDS

CORPUS = [
    " ".join([*WORDS, *BEHAVIORS]),
    "This user did: clicked bought with unknown after 12h; start 3mo 45m 2w item history:",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday at 04:00 .",
    "用户历史： 点击 购买 物品 《红色的灯》 评分 距上次 小时 分钟 个月 开始 ；",  # noqa: RUF001
    " ".join("abcdefghijklmnopqrstuvwxyz0123456789"),
    "abcdefghijklmnopqrstuvwxyz0123456789" * 2,
    "Don't stop! “quotes” (1999), 12 items - café naïve 😀 ok?",
]
FAMILIES = ("bert", "gpt2", "roberta", "llama2", "llama3", "unigram")


@functools.cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    made = {
        "bert": _wordpiece,
        "gpt2": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), trim=True),
        "roberta": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), trim=True),
        "llama2": _metaspace_bpe,
        "llama3": lambda: _byte_level(_digits_apart(), trim=False),
        "unigram": _unigram,
    }
    return made[family]()


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _byte_level(cut: pre_tokenizers.PreTokenizer, *, trim: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    pattern = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _metaspace_bpe() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it: spaces become letters, nothing is cut beforehand."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=650, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def _unigram() -> PreTrainedTokenizerFast:
    """SentencePiece Unigram as T5, XLM-R and DeBERTa-v3 have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<unk>", "<s>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
