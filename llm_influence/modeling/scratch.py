"""Backbones from scratch: a SentencePiece tokenizer trained on a log, and a random decoder.

Use them for a log whose language no pretrained model covers, or to measure the benefit of
pretraining. Train all weights of the decoder (adapter kind ``full``).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from llm_influence.config.model import ScratchConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ConfigError, OutputError
from llm_influence.rendering.template import Template
from llm_influence.rendering.token_cache import Wording
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.utils import require, unwritable

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<s>", "</s>"
NEVER = -1e4  # score of control pieces, and of bytes, which are the last resort
MAX_LINES = 2_000_000  # of a longer log a sample of this size


@dataclass(frozen=True, slots=True)
class ScratchResult:
    """A backbone made by `make_backbone`.

    Attributes:
        folder: Folder of tokenizer and decoder, for ``model.backbone``.
        vocabulary: Size of the vocabulary, the 256 bytes included.
        parameters: Number of parameters of the decoder.
        lines: Number of lines of text behind the tokenizer.
    """

    folder: Path
    vocabulary: int
    parameters: int
    lines: int


def make_backbone(
    log: BehaviorLog, template: Template, config: ScratchConfig, folder: Path
) -> ScratchResult:
    """Train a tokenizer on a rendered log, make a random decoder for it, and write both.

    The tokenizer is a SentencePiece unigram model (Kudo 2018, arXiv:1804.10959) with byte fallback,
    so that no text is unknown. No piece contains a space inside, and no character is changed. The
    decoder is a Llama. The same log, template and configuration give the same files.

    Args:
        log: Training events; the texts of the whole catalogue are read too.
        template: Template of the events.
        config: Sizes and seed.
        folder: Output folder, new or empty.

    Raises:
        OutputError: The folder is not empty, or cannot be written.
        ConfigError: The vocabulary is too small for the log's characters, the width does not fit
            the heads, or sentencepiece is not installed.
    """
    _check(config, folder)
    wording = Wording(template, Vocabulary.fit(log, template.user_features))
    lines = tqdm(_lines(log, wording), desc="rendering", unit=" lines", mininterval=1)
    trained = _train(iter(lines), config)
    tokenizer = _as_fast(trained)
    decoder = _start_decoder(config, tokenizer)
    _write(folder, trained, tokenizer, decoder)
    return ScratchResult(folder, len(tokenizer), decoder.num_parameters(), int(lines.n))


def _check(config: ScratchConfig, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            "the folder is not empty",
            where=str(folder),
            expected="a new folder",
            fix="choose another --out, or remove it",
        )
    if config.width % (2 * config.heads):
        raise ConfigError(
            f"width {config.width} does not fit {config.heads} heads",
            where="--width, --heads",
            expected="a multiple of twice the heads, as rotary positions use pairs of numbers",
            fix=f"use --width {2 * config.heads * (config.width // (2 * config.heads) + 1)}",
        )


def _lines(log: BehaviorLog, wording: Wording) -> Iterator[str]:
    """Lines of text: phrases of the template, texts of items, then one line for each event.

    A candidate piece of SentencePiece must occur in at least two different words. The most frequent
    words of a log ("clicked", a product's name) have only one form, so a second one, with a full
    stop, is added.
    """
    for text in chain(wording.phrases(), log.catalogue.texts):
        yield text
        yield " ".join(f"{word}." for word in text.split())
    for history in log:
        yield wording.prompt(history.user)
        yield from wording.events(history)


def _train(lines: Iterator[str], config: ScratchConfig) -> Any:  # noqa: ANN401 - optional library
    sentencepiece = require("sentencepiece", extra="scratch", purpose="training a tokenizer")
    sentencepiece.set_random_generator_seed(config.seed)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line.strip() for line in lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # a small log gives fewer pieces
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            input_sentence_size=MAX_LINES,
            shuffle_input_sentence=True,
            num_threads=1,  # with more threads the sums differ from run to run
            minloglevel=2,
            **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
            **{"pad_piece": PAD, "unk_piece": UNKNOWN, "bos_piece": START, "eos_piece": END},
        )
    except RuntimeError as error:
        raise ConfigError(
            f"no tokenizer of {config.vocab_size} pieces can be made ({error})",
            where="--vocab-size",
            expected="more pieces than 260 (bytes and controls) and the log's characters together",
            fix="raise --vocab-size",
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _as_fast(trained: Any) -> PreTrainedTokenizerFast:  # noqa: ANN401 - optional library
    """The same tokenizer for the library tokenizers, which gives character offsets."""
    pieces = [
        (
            trained.id_to_piece(code),
            NEVER if trained.is_control(code) or trained.is_byte(code) else trained.get_score(code),
        )
        for code in range(trained.get_piece_size())
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=trained.unk_id(), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END},
    )


def _start_decoder(config: ScratchConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=-(-config.width * 8 // 24) * 8,  # 8/3 of the width, in eights
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaModel(shape)


def _write(
    folder: Path,
    trained: Any,  # noqa: ANN401 - optional library
    tokenizer: PreTrainedTokenizerFast,
    decoder: LlamaModel,
) -> None:
    """Write the folder completely or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tokenizer.save_pretrained(part)
        decoder.save_pretrained(part)
        (part / "sentencepiece.model").write_bytes(trained.serialized_model_proto())
        if folder.exists():
            folder.rmdir()  # empty
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise unwritable(folder, error) from error
