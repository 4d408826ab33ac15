"""Tiny random models and a small log, made in memory: no test reaches a model hub."""

# ruff: noqa: S106 - the tokens here are words, no secrets

import functools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from llm_influence.config.model import RECURRENT
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.model import InfluenceModel

WORDS = (
    "red",
    "green",
    "blue",
    "small",
    "large",
    "old",
    "new",
    "lamp",
    "chair",
    "table",
    "book",
    "film",
)
BEHAVIORS = ("click", "cart", "purchase")
BACKBONES = ("bert", "modernbert", "gpt2", "llama")
CELLS = (("gru", "token"), ("lstm", "text"), ("recurrence", "token"))
"""Each in one rendering style: they differ in their cell alone."""
OTHER_BACKBONES = ("roberta", "deberta-v2", "mistral")
"""Families that only a few tests run through."""


def items_table(count: int = 30, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(WORDS, size=3)) + f" {i}" for i in range(count)]
    return pa.table({"item_id": [f"i{i}" for i in range(count)], "title": titles})


def events_table(users: int = 12, items: int = 30, seed: int = 0) -> pa.Table:
    """Users with 4 to 11 events; behaviours, values and times all vary."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        length = 4 + user % 8
        times = 1_000_000 + np.cumsum(rng.integers(1, 200_000, size=length))
        for time, item in zip(times, rng.permutation(items)[:length], strict=True):
            value = float(rng.integers(1, 6)) if rng.random() < 0.7 else None
            rows.append((f"u{user}", f"i{item}", int(time), BEHAVIORS[item % 3], value))
    names = ["user_id", "item_id", "timestamp", "behavior", "value"]
    return pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))


def users_table(users: int = 12) -> pa.Table:
    ages = [str(20 + user % 3) for user in range(users)]
    return pa.table({"user_id": [f"u{i}" for i in range(users)], "age": ages})


def small_log(users: int = 12, items: int = 30, seed: int = 0) -> BehaviorLog:
    return BehaviorLog.read(
        events_table(users, items, seed), items=items_table(items), users=users_table(users)
    )


@functools.cache
def backbone_folder(kind: str) -> str:
    """A folder with a tiny random backbone and a tokenizer of its family."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    torch.manual_seed(0)
    tokenizer = _wordpiece() if kind in {"bert", "modernbert"} else _byte_level()
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 128}
    if kind == "bert":
        model = BertModel(BertConfig(**shape, **heads, intermediate_size=48))
    elif kind == "modernbert":  # layer 0 sees all, layer 1 four tokens on each side
        window = {"local_attention": 8, "global_attn_every_n_layers": 2}
        ends = dict.fromkeys(("bos", "eos", "cls", "sep", "pad"), 0)
        names = {f"{name}_token_id": place for name, place in ends.items()}
        model = ModernBertModel(
            ModernBertConfig(**shape, **heads, **window, **names, intermediate_size=48)
        )
    elif kind == "llama":
        wide = {"intermediate_size": 48, "num_key_value_heads": 2}
        model = LlamaModel(LlamaConfig(**shape, **heads, **wide))
    elif kind == "roberta":
        model = RobertaModel(RobertaConfig(**shape, **heads, intermediate_size=48))
    elif kind == "deberta-v2":
        pairs = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        model = DebertaV2Model(DebertaV2Config(**shape, **heads, **pairs, intermediate_size=48))
    elif kind == "mistral":  # each token sees eight
        wide = {"intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 8}
        model = MistralModel(MistralConfig(**shape, **heads, **wide))
    else:
        model = GPT2Model(
            GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _corpus() -> list[str]:
    chinese = ["历史： 点击 物品 距上次 小时 分钟 评分 收藏 加购"]  # noqa: RUF001
    return [" ".join([*WORDS, *BEHAVIORS]), "history: item after; value unknown", *chinese]


def _wordpiece() -> PreTrainedTokenizerFast:
    """Whole words and single letters: a trained code_names would differ from run to run."""
    cut = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for line in _corpus() for word, _ in cut.pre_tokenize_str(line)})
    letters = sorted({letter for word in words for letter in word} | set("0123456789"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *words, *letters, *(f"##{letter}" for letter in letters)])
    code_names = {piece: code for code, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(code_names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>")


def run_config(kind: str = "bert", style: str = "token", **sections: dict) -> RunConfig:
    model = (
        recurrent_options(kind, style)
        if kind in RECURRENT
        else {"backbone": backbone_folder(kind), "adapter": {"rank": 4}}
    )
    tree: dict = {
        "rendering": {
            "style": style,
            "template": "full" if style == "token" else "prose",
            "max_events": 8,
        },
        "model": model,
        "train": {"epochs": 1, "batch_size": 4},
    }
    for section, options in sections.items():
        tree[section] = {**tree.get(section, {}), **options}
    # off by default: most tests are about the language model; tests of the memory switch it on
    tree["model"]["item_head"] = {
        "memory": {"enabled": False},
        **tree["model"].get("item_head", {}),
    }
    return RunConfig.model_validate(tree)


def recurrent_options(kind: str, style: str) -> dict:
    words = backbone_folder("bert") if style == "text" else None
    sizes = {"width": 32, "layers": 1 if kind == "recurrence" else 2, "words": words}
    return {"backbone": kind, "recurrent": sizes, "adapter": {"kind": "full"}}


def tiny_model(
    kind: str = "bert", style: str = "token", *, noise: float | None = None, **options: object
) -> InfluenceModel:
    """An untrained model whose heads, adapter and residuals are all away from their zero start.

    A cell at its start hardly feels its input: recurrent models are moved further. ``options``
    are those of the section ``model``.
    """
    if noise is None:
        noise = 0.3 if kind in RECURRENT else 0.05
    return moved(InfluenceModel.build(run_config(kind, style, model=options), small_log()), noise)


def moved(model: InfluenceModel, noise: float = 0.05) -> InfluenceModel:
    """The same model with all that is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model.eval()
