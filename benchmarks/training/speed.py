"""Speed of training against the bare backbone: docs/benchmarks/training_speed.json.

    python -m benchmarks.training.speed [--core 0] [--blocks 12] [--block 4]
    python -m benchmarks.training.speed --device cuda --peak-tflops 989 \
        --backbone smollm2-135m --batch-size 256 --write docs/benchmarks/training_speed_smollm2.json
    python -m benchmarks.training.speed --device cuda --peak-tflops 989 --random-llama 1b \
        --batch-size 64 --write docs/benchmarks/training_speed_1b.json

`InfluenceTrainer` trains as in a run; after every block of its steps the backbone and its adapter
alone read the same batches, forward and backward, so both share whatever the machine does. Medians
over blocks. On a CPU every setting of `settings` is measured, on a GPU the one that was asked for.
Settings that are finished leave a JSON in ``--work`` and are skipped by the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from benchmarks.harness import write_benchmark
from benchmarks.training.clock import Alternating, RegionClock, flops, watched
from benchmarks.training.million_items import million_items, random_log
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.assets import asset_path
from llm_influence.datasets.sources import open_data
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

Result = dict[str, float | str | int]


def settings(options: argparse.Namespace) -> dict[str, list[str]]:
    """By name, what is changed in the configuration; the first one makes the figures."""
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
    return split_log(open_data(config.data), config.data.split)


def measure(name: str, config: RunConfig, options: argparse.Namespace) -> Result:
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


def profile(config: RunConfig, options: argparse.Namespace) -> list[Result]:
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
    """GiB of training with a million items, as its own benchmark measured it or does now."""
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


def once(path: Path, make: object) -> object:
    """What ``make`` gives, kept in ``path``."""
    if not path.is_file():
        write_text(path, json.dumps(make(), indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def main(options: argparse.Namespace) -> None:
    """Measure the settings that have no result yet, then write them all."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if on_cpu() != (options.device == "cpu"):
        raise SystemExit(f"--device {options.device}: there is no such device here")
    rows, kept = [], options.work / _digest(options)
    for name, changes in settings(options).items():
        config = config_of(changes, options)
        row = once(kept / f"{name}.json", lambda n=name, c=config: measure(n, c, options))
        print(json.dumps(row), flush=True)
        rows.append(row)
    config = config_of([], options)
    parts = once(kept / "profile.json", lambda: profile(config, options))
    print(profile_table(parts), flush=True)
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
        options.write,
        name=options.write.stem,
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


def profile_table(rows: list[Result]) -> str:
    """The profile for people."""
    lines = ["| part of a step | ms | share |", "|---|---|---|"]
    lines += [
        f"| {row['region']} | {row['milliseconds']:.1f} | {row['share']:.1%} |" for row in rows
    ]
    return "\n".join(lines)


def _digest(options: argparse.Namespace) -> str:
    """Names what was asked for, so that results of another command are not taken for this one's."""
    asked = (options.device, options.random_llama or options.backbone or options.config.stem)
    numbers = (options.layers, options.batch_size, options.precision, options.threads)
    return "-".join(map(str, (*asked, *numbers, options.blocks, options.block))).replace("/", "_")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/movielens_100k.yaml"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backbone", help="minilm, smollm2-135m, a folder; all its layers")
    parser.add_argument("--random-llama", choices=LLAMAS, help="random weights, a random log")
    parser.add_argument("--layers", type=int, help="of the backbone; default: the configuration's")
    parser.add_argument("--batch-size", type=int, help="default: the configuration's")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--peak-tflops", type=float, help="of the chip in bf16, dense")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--block", type=int, default=4, help="steps of a block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="run on this CPU core alone; default: any")
    parser.add_argument("--million", action="store_true", help="measure a million items again")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_training_speed"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/training_speed.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main(_options())
