"""Models ready for training, and backbones from scratch: a tokenizer and a small decoder."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from llm_influence.config.model import OWN_BACKBONES, ScratchConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.public import open_knowledge
from llm_influence.errors import ConfigError, ModelError, OutputError
from llm_influence.modeling.adapters import attach_adapter
from llm_influence.modeling.backbone import CLOSE, FAILURES, Backbone, inference, load_backbone
from llm_influence.modeling.conditioning import smoothed
from llm_influence.modeling.embeddings import Embeddings, item_bags, text_vectors
from llm_influence.modeling.feedback_fit import fit_candidates
from llm_influence.modeling.heads import FeedbackScale, make_heads
from llm_influence.modeling.memory_fit import fit_memory
from llm_influence.modeling.network import Network
from llm_influence.modeling.parts import Parts
from llm_influence.modeling.recurrent import start_recurrent
from llm_influence.rendering.encoder import RECORD, EncodedBatch, Encoder, collate
from llm_influence.rendering.template import Template
from llm_influence.rendering.token_cache import IdTokenCache, Wording
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.utils import unwritable

FITTED_USERS = 512
"""Number of users whose histories standardise the aggregate features."""


def build_parts(config: RunConfig, log: BehaviorLog, *, cache: Path | None = None) -> Parts:
    """The parts of an untrained model; arguments and errors as in `InfluenceModel.build`."""
    torch.manual_seed(config.train.seed)
    options = config.model
    backbone, reader = _open_backbone(config)
    encoder = _encoder(config, log, backbone)
    tokens = encoder.token_cache
    first_item = tokens.first_item if isinstance(tokens, IdTokenCache) else 0
    catalogue = encoder.vocabulary.catalogue
    words = tokens.words if isinstance(tokens, IdTokenCache) else list(catalogue.texts)
    embeddings = Embeddings(
        text_vectors(reader, words, cache=cache) if reader else torch.zeros(len(words), 0),
        backbone.width,
        scale=backbone.usual_length,
        rank=options.item_head.residual_width(len(catalogue), backbone.width),
        first_item=first_item,
        residual_dropout=options.residual_dropout,
        conditioning=options.item_head.text.conditioning,
        shrinkage=options.item_head.text.shrinkage,
    )
    if embeddings.has_words and (share := options.item_head.text.smoothing):
        units = embeddings.words[first_item:]
        embeddings.words[first_item:] = smoothed(units, log, share)
    adapter = attach_adapter(backbone.model, options.adapter)
    if encoder.style == "token" and backbone.words is not None:  # the embeddings replace them
        backbone.words.requires_grad_(requires_grad=False)
    scale = None if options.feedback is None else FeedbackScale.fit(log, options.feedback)
    memory = None
    if options.item_head.weight and options.item_head.memory.enabled:
        memory = fit_memory(
            log,
            encoder.vocabulary,
            options.item_head.memory,
            reach=encoder.max_events,
            seed=config.train.seed,
        )
    heads = make_heads(backbone, encoder, options, scale, memory)
    if not embeddings.has_words:
        embeddings.begin_at_random()
    facts = open_knowledge(config.data)
    neighbors = options.item_head.neighbors
    if facts is not None and neighbors.share:
        count, share = neighbors.count, neighbors.share
        place = {"first": first_item, "first_item": first_item}
        embeddings.mix(*item_bags(facts, catalogue.ids, count=count, share=share, **place))
    if heads.feedback is not None and heads.feedback.aggregates is not None:
        users = np.linspace(0, len(log) - 1, min(len(log), FITTED_USERS)).astype(int)
        histories = [log.at(user) for user in users.tolist()]
        heads.feedback.aggregates.fit(collate(encoder.encode(histories)))
    if heads.feedback is not None:
        texts = embeddings.words[first_item:]
        fit_candidates(heads.feedback, options.feedback_head, log, encoder, texts)
    return Parts(backbone, adapter, encoder, embeddings, heads, options, facts, rules=config.rules)


def _open_backbone(config: RunConfig) -> tuple[Backbone, Backbone | None]:
    """The backbone, and the one that reads the texts of items: the same, another or none."""
    options = config.model
    if options.backbone in OWN_BACKBONES:
        return start_recurrent(options, config.rendering.style)
    backbone = load_backbone(options.backbone, layers=options.layers, dropout=options.dropout)
    return backbone, backbone


def _encoder(config: RunConfig, log: BehaviorLog, backbone: Backbone) -> Encoder:
    template = Template.load(config.rendering.template)
    most = config.rendering.max_tokens or backbone.context
    return Encoder(
        template,
        Vocabulary.fit(log, template.user_features),
        style=config.rendering.style,
        tokenizer=backbone.tokenizer,
        max_events=config.rendering.max_events,
        max_tokens=min(most, backbone.context),
    )


def check_causality(network: Network, *, events: int = 4, tokens: int = 3) -> None:
    """Refuse a backbone whose state after an event depends on later events.

    Some architectures mix tokens by convolution or Fourier transform whatever the mask is. A model
    trained on them would have seen the labels.

    Args:
        network: The network.
        events: Number of events of the history that is tried.
        tokens: Number of tokens of each event.

    Raises:
        ModelError: The backbone sees later events, or does not accept a mask of pairs of tokens.
    """
    backbone, total = network.backbone, events * tokens
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, total, backbone.input_width, generator=generator)
    other = vectors.clone()
    other[:, -tokens:] = -other[:, -tokens:]
    event = torch.arange(total).div(tokens, rounding_mode="floor")[None]
    batch = EncodedBatch(
        input_ids=torch.zeros_like(event),
        added_ids=torch.empty(1, total, 0, dtype=torch.long),
        attention_mask=torch.ones_like(event, dtype=torch.bool),
        event_index=event,
        field_index=torch.full_like(event, -1),
        ends=torch.arange(-1, total, tokens)[None].clamp(min=0),
        num_events=torch.tensor([events]),
        when=torch.zeros(1, dtype=torch.long),
        records=torch.zeros(1, events, len(RECORD), dtype=torch.long),
        gap=torch.zeros(1, dtype=torch.long),
    )
    try:
        with inference(network):
            first, second = (network.states(batch, v.to(network.device)) for v in (vectors, other))
    except FAILURES as error:
        raise _refused(backbone, f"cannot be run with a mask ({error})") from error
    change = (first - second).abs()[:, :-tokens].max().item()
    if change > CLOSE * max(1.0, first.abs().mean().item()):
        raise _refused(backbone, "lets an event's state depend on later events")


def _refused(backbone: Backbone, reason: str) -> ModelError:
    return ModelError(
        f"{backbone.source!r} ({backbone.model.config.model_type}) {reason}",
        where="model.backbone",
        expected="a decoder, or an encoder that takes a mask of shape (B, 1, T, T)",
        fix="choose another backbone; docs/how-to/choose_a_backbone.md lists families that work",
    )


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
            the heads.
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


def _train(lines: Iterator[str], config: ScratchConfig) -> sentencepiece.SentencePieceProcessor:
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
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=PAD,
            unk_piece=UNKNOWN,
            bos_piece=START,
            eos_piece=END,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"no tokenizer of {config.vocab_size} pieces can be made ({error})",
            where="--vocab-size",
            expected="more pieces than 260 (bytes and controls) and the log's characters together",
            fix="raise --vocab-size",
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _as_fast(trained: sentencepiece.SentencePieceProcessor) -> PreTrainedTokenizerFast:
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
