"""A backbone from nothing: a SentencePiece tokenizer of the log's own words, a small decoder.

For logs whose language no pretrained model knows well, or as the comparison that says what
pretraining is worth. The decoder's weights are random: train all of them (adapter kind ``full``).
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
NEVER = -1e4  # score of pieces that no text is cut into: controls, and bytes but as a last resort
MOST_LINES = 2_000_000  # more are sampled: the pieces of a language show long before


@dataclass(frozen=True, slots=True)
class ScratchResult:
    """What was made.

    Attributes:
        folder: Tokenizer and decoder; give it as ``model.backbone``.
        vocabulary: TokenCache, the 256 bytes included.
        parameters: Of the decoder.
        lines: Lines of text the tokenizer was trained on.
    """

    folder: Path
    vocabulary: int
    parameters: int
    lines: int


def make_backbone(
    log: BehaviorLog, template: Template, config: ScratchConfig, folder: Path
) -> ScratchResult:
    """Train a tokenizer on a rendered log and start a decoder beside it; write both.

    The tokenizer is a SentencePiece unigram model (Kudo 2018, arXiv:1804.10959) with the bytes as
    a last resort, so that no text is unknown. It never cuts across a space and changes no
    character. The decoder is of the Llama type. The same log, template and configuration give
    the same files.

    Args:
        log: Events of training alone; its whole catalogue is read, items never touched included.
        template: What the events are rendered with.
        config: Sizes and seed.
        folder: Where to write; must not exist, or be empty.

    Raises:
        OutputError: The folder holds something, or cannot be written.
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
            "something is there already",
            where=str(folder),
            expected="a new folder",
            fix="choose another --out, or remove it",
        )
    if config.width % (2 * config.heads):
        raise ConfigError(
            f"width {config.width} does not fit {config.heads} heads",
            where="--width, --heads",
            expected="a width that is a multiple of twice the heads: places turn pairs of numbers",
            fix=f"use --width {2 * config.heads * (config.width // (2 * config.heads) + 1)}",
        )


def _lines(log: BehaviorLog, wording: Wording) -> Iterator[str]:
    """Every piece and every item's text, then the log, a line an event; nothing is held.

    SentencePiece takes as candidates what at least two different words share. In a log the most
    frequent words ("clicked", a product's name) stand in one form alone, so each is shown in a
    second form, with a full stop, or it would be cut into letters.
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
            hard_vocab_limit=False,  # a small log has fewer pieces
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            input_sentence_size=MOST_LINES,
            shuffle_input_sentence=True,
            num_threads=1,  # more would add up in another order each time
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
    """The same model for the tokenizers library, which gives character offsets."""
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
    """The folder appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tokenizer.save_pretrained(part)
        decoder.save_pretrained(part)
        (part / "sentencepiece.model").write_bytes(trained.serialized_model_proto())
        if folder.exists():
            folder.rmdir()  # it is empty
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise unwritable(folder, error) from error
