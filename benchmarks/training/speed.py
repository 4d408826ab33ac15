r"""Speed of training against the bare backbone: docs/benchmarks/training_speed.json.

    python -m benchmarks.training.speed [--core 0] [--blocks 12] [--block 4]
    python -m benchmarks.training.speed --device cuda --peak-tflops 989 \
        --backbone smollm2-135m --batch-size 256 --output training_speed_smollm2.json
    python -m benchmarks.training.speed --device cuda --peak-tflops 989 --random-llama 1b \
        --batch-size 64 --output training_speed_1b.json

`InfluenceTrainer` trains as in a run. After every block of its steps the backbone and its adapter
alone read the same batches, forward and backward. Medians over blocks. On a CPU every setting of
`settings` is measured, on a GPU one setting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from benchmarks.harness import Row, arguments, results_of, started, write_benchmark
from benchmarks.training.clock import Alternating, RegionClock, flops, watched
from benchmarks.training.million_items import million_items, random_log
from benchmarks.training_runs import MOVIELENS
from benchmarks.training_runs import open_split as open_movielens
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.assets import asset_path
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.base_trainer import wants_bf16
from llm_influence.training.trainer import InfluenceTrainer
from llm_influence.utils import write_text

MILLION = Path("docs/benchmarks/million_items.json")
LLAMAS = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 2048}
}
"""Shapes of decoders with random weights, for speed alone; 1b is that of Llama 3.2 1B."""

PARSER = arguments(
    __doc__,
    "training_speed",
    config=MOVIELENS,
    device={"choices": ["cpu", "cuda"], "default": "cpu"},
    backbone=(str, "minilm, smollm2-135m, a folder; all its layers"),
    random_llama={"choices": LLAMAS, "help": "random weights, a random log"},
    layers=(int, "of the backbone; default: the configuration's"),
    batch_size=(int, "default: the configuration's"),
    precision={"choices": ["fp32", "bf16"]},
    peak_tflops=(float, "of the chip in bf16, dense"),
    blocks=12,
    block=(4, "steps of a block"),
    million=(False, "measure a million items again"),
)


def settings(options: argparse.Namespace) -> dict[str, list[str]]:
    """By name, the changes of the configuration; the first one makes the figures."""
    if options.device == "cuda":
        return {"as asked": []}
    usual = {"as configured": []}
    changed = {
        "fp32": ["--train.precision=fp32"],
        "bf16": ["--train.precision=bf16"],
        "dropout 0": ["--model.dropout=0"],
        "random order": [],
        "all layers": ["--model.layers=null"],
        "20,000 items, full softmax": ["--model.item_head.loss=full"],
        "100,000 items, sampled softmax": ["--model.item_head.loss=sampled"],
    }
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        del changed["bf16"]
    return usual | changed


def open_split(name: str, config: RunConfig, options: argparse.Namespace) -> Split:
    """MovieLens, or a random log where the number of items matters or a backbone is random."""
    if name.partition(" ")[2].startswith("items"):
        items = int(name.partition(" ")[0].replace(",", ""))
        return split_log(random_log(items, users=640), config.data.split)
    if options.random_llama:
        return split_log(random_log(2_000, users=2_048, texts=50), config.data.split)
    return open_movielens(config)


def measure(name: str, config: RunConfig, options: argparse.Namespace) -> Row:
    """Both speeds of one setting."""
    split = open_split(name, config, options)
    model = InfluenceModel.build(config, split.train, cache=options.work / "text_vectors")
    blocks, size, shuffled = options.blocks + 1, options.block, name == "random order"
    with watched(config, model, split, blocks * size, shuffled=shuffled) as trainer:
        padding = padding_share(trainer)
        clock = Alternating(trainer, size)
        trainer.add_callback(clock)
        trainer.train()
        measured = clock.blocks[1:]  # the first warms up
        batch = next(iter(trainer.get_train_dataloader()))
        tokens, (work, bare_work) = int(batch["attention_mask"].sum()), flops(trainer, batch)
        found = {
            "system": "llm_influence",
            "task": name,
            "tokens_per_second": _median(measured, "tokens", "seconds"),
            "bare_tokens_per_second": _median(measured, "tokens", "bare_seconds"),
            "ratio_to_bare_backbone": _median(measured, "bare_seconds", "seconds"),
            "ratio_to_bare_transformers": _median(measured, "transformers_seconds", "seconds"),
            "ratio_of_operations": bare_work / work,
            "padding_share": padding,
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "dropout": config.model.dropout,
            "layers": model.backbone.model.config.num_hidden_layers,
            "items": len(model.catalogue),
            "order": "random" if shuffled else "length",
            "gflop_per_token": work / tokens / 1e9,
        }
    if options.peak_tflops is not None:
        reached = found["tokens_per_second"] * found["gflop_per_token"] / 1e3
        found["tflops"], found["share_of_peak"] = reached, reached / options.peak_tflops
    return found


def padding_share(trainer: InfluenceTrainer) -> float:
    """Share of an epoch's places that hold no token."""
    shown = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    return 1 - sum(int(mask.sum()) for mask in shown) / sum(mask.numel() for mask in shown)


def profile(config: RunConfig, options: argparse.Namespace) -> list[Row]:
    """Milliseconds of a step by region."""
    split = open_split("", config, options)
    model = InfluenceModel.build(config, split.train, cache=options.work / "text_vectors")
    with watched(config, model, split, options.blocks * options.block + 1) as trainer:
        clock = RegionClock(trainer)
        trainer.add_callback(clock)
        trainer.train()
    total = sum(clock.seconds.values())
    return [
        {
            "system": "llm_influence",
            "task": "profile",
            "region": region,
            "milliseconds": 1000 * seconds / clock.steps,
            "share": seconds / total,
        }
        for region, seconds in clock.seconds.items()
    ]


def million_peak(*, again: bool) -> float:
    """GiB of training with a million items, from its own benchmark or measured now."""
    if not again and MILLION.is_file():
        figures = json.loads(MILLION.read_text(encoding="utf-8"))["figures"]
        if figures["items"] == 1_000_000:
            return figures["peak_gib_million_items"]
    return million_items()["peak_gib_million_items"]


def config_of(changes: list[str], options: argparse.Namespace) -> RunConfig:
    """The configuration file with the options of the command and a setting's changes."""
    asked = []
    if options.random_llama:
        folder = random_llama(options.random_llama, options.work)
        asked += [f"--model.backbone={folder}", "--model.layers=null"]
    elif options.backbone:
        asked += [f"--model.backbone={options.backbone}", "--model.layers=null"]
    for key, value in (
        ("model.layers", options.layers),
        ("train.batch_size", options.batch_size),
        ("train.precision", options.precision),
    ):
        asked += [f"--{key}={value}"] if value is not None else []
    return RunConfig.load(options.config, [*asked, *changes])


def random_llama(size: str, work: Path) -> Path:
    """A folder with a decoder of random weights and MiniLM's tokenizer, made once."""
    folder = work / f"llama_{size}"
    if not (folder / "model_done").is_file():
        tokenizer = AutoTokenizer.from_pretrained(asset_path("minilm"))
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        shape = LlamaConfig(vocab_size=len(tokenizer), **LLAMAS[size])
        LlamaModel(shape).save_pretrained(folder)
        write_text(folder / "model_done", "")
    return folder


def _median(blocks: list[dict[str, float]], upper: str, lower: str) -> float:
    return statistics.median(block[upper] / block[lower] for block in blocks)


def main(options: argparse.Namespace) -> None:
    """Measure the settings that have no result yet, then write them all."""
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if on_cpu() != (options.device == "cpu"):
        raise SystemExit(f"--device {options.device}: there is no such device here")
    fixed = ("device", "random_llama", "backbone", "config", "layers", "batch_size", "precision")
    fixed += ("threads", "blocks", "block")
    results = results_of(options, **{name: getattr(options, name) for name in fixed})
    rows = []
    for name, changes in settings(options).items():
        own = config_of(changes, options)
        rows.append(results.keep(name, lambda n=name, c=own: measure(n, c, options)))
    config = config_of([], options)
    parts = results.keep("profile", lambda: profile(config, options))
    first = rows[0]
    figures = {
        key: first[key]
        for key in (
            "ratio_to_bare_backbone",
            "ratio_to_bare_transformers",
            "ratio_of_operations",
            "tokens_per_second",
            "bare_tokens_per_second",
            "padding_share",
        )
    }
    if options.device == "cpu":
        figures |= {
            f"ratio_{row['task'].replace(',', '').replace(' ', '_')}": row["ratio_to_bare_backbone"]
            for row in rows[1:]
        }
        figures["peak_gib_million_items"] = million_peak(again=options.million)
    figures |= {key: first[key] for key in ("tflops", "share_of_peak") if key in first}
    write_benchmark(
        options.output,
        name=options.output.stem,
        protocol=protocol(config, options),
        rows=rows + parts,
        figures=figures,
        seeds=[config.train.seed],
    )


def protocol(config: RunConfig, options: argparse.Namespace) -> dict[str, object]:
    """How it was measured."""
    cpu_clock = options.device == "cpu" and options.threads == 1
    return {
        "ours": "InfluenceTrainer as in a run: data, forward, loss over the items, backward, "
        "clipping, AdamW, logging; without validations and checkpoints",
        "bare": "the same backbone and adapter in the same mode and precision, from ready input "
        "vectors of the same batches with a mask of padding alone; forward, sum of squared last "
        "states, backward; neither heads nor optimizer; ratio_to_bare_transformers: with the "
        "attention of transformers, which in bf16 on a CPU is slower than ours in float32",
        "ratio_of_operations": "operations of the bare pass over those of our step: the ratio of "
        "the speeds if the scores of the items and nothing else took time beside the backbone",
        "blocks": f"{options.blocks} blocks of {options.block} steps of each, in turn; medians",
        "seconds": "of the processor" if cpu_clock else "of the clock",
        "tokens": "without padding",
        "gflop_per_token": "matrix products and attention of a training step, padding included",
        "backbone": config.model.backbone if not options.random_llama else "random Llama",
        "layers": config.model.layers or "all",
        "adapter": config.model.adapter.describe(),
        "batch_size": config.train.batch_size,
        "max_events": config.rendering.max_events,
        "precision": "bf16" if wants_bf16(config.train) else "fp32",
        "threads": torch.get_num_threads(),
        "peak_tflops": options.peak_tflops,
    }


if __name__ == "__main__":
    main(started(PARSER))
