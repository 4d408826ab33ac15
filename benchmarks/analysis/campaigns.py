"""Credit of marketing channels by the model and by common rules: campaign_attribution.json.

    python -m benchmarks.analysis.campaigns --stage planted
    python -m benchmarks.analysis.campaigns --stage redemption [--model FOLDER]

`planted`: generated campaign logs (`generated_campaigns`) with known removal effects, in a world
whose confounder stands in the log and in one where it is hidden: every estimator of `llm-influence
analyze channels` against the truth, and the model without all touches of a channel at once.
`redemption`: Complete Journey, will a household redeem a coupon within 14 days of a contact; no
truth is known. The JSON has all stages that are done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.analysis.generated_campaigns import HALF_LIFE, WORTH, Campaigns, World, generate
from benchmarks.harness import Row, arguments, results_of, row_of, started, write_benchmark
from benchmarks.training_runs import fitted, small_gru
from llm_influence.analysis.attribution_rules import shares_of
from llm_influence.analysis.channels import analyze_channels
from llm_influence.analysis.output import Analysis
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
from llm_influence.config.analyses import ChannelOptions
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import EvaluationSet
from llm_influence.modeling.model import InfluenceModel
from llm_influence.run import Run
from llm_influence.training.finetune import finetune
from llm_influence.types import FloatArray
from llm_influence.utils import write_text, write_whole

WORLDS: tuple[World, ...] = ("seen", "hidden")
JOINT = "model, a channel removed at once"
REDEMPTION = Path("configs/complete_journey_redemption.yaml")
PARSER = arguments(
    __doc__,
    "campaign_attribution",
    seeds=(0, 1, 2),
    stage={"choices": ("planted", "redemption"), "required": True},
    users=6000,
    test_users=3000,
    epochs=8.0,
    config=(REDEMPTION, "of the stage redemption"),
    model=(Path, "a run of the redemption configuration"),
    most=(int, "labelled contacts to explain; default: all"),
)


# --- planted ---------------------------------------------------------------------------------


def run_config(options: argparse.Namespace, seed: int) -> RunConfig:
    """A small GRU that predicts the label of visits."""
    feedback = {"weight": 1.0, "label": "label", "behaviors": ["visit"]}
    return small_gru(
        options.work,
        seed,
        epochs=options.epochs,
        rendering={"max_events": 41},
        model={
            "dropout": 0.1,
            "item_head": {"weight": 0.0},
            "feedback_head": feedback,
            "when": True,
        },
        train={"batch_size": 128},
    )


def planted(options: argparse.Namespace) -> list[Row]:
    """Rows of the worlds and seeds; with ``--stage planted`` those missing are measured."""
    names = ("users", "test_users", "epochs")
    results, rows = results_of(options, **{name: getattr(options, name) for name in names}), []

    def measure(seed: int, world: World) -> list[Row]:
        folder = options.work / "planted" / f"{world}_{seed}"
        train, other = (generate(world, n, seed) for n in (options.users, options.test_users))
        model = fitted(run_config(options, seed), train.log, folder)
        return list(planted_rows(model, other, world, seed, folder / "influence"))

    for world in WORLDS:
        for seed in options.seeds:
            key = f"{world}, seed {seed}"
            if key in results or options.stage == "planted":
                rows += results.keep(key, lambda s=seed, w=world: measure(s, w))
    return rows


def planted_rows(
    model: InfluenceModel, asked: Campaigns, world: World, seed: int, folder: Path
) -> Iterator[Row]:
    """Shares and effects of every estimator, and how far they are from the truth."""
    log = asked.log
    visits = EvaluationSet(log, np.arange(len(log)), log.lengths.astype(np.int64) - 1)
    explainer = Explainer(model, "leave_one_out", fidelity_masks=0)
    explain_batch(explainer, visits, folder, target="feedback", progress=False)
    options = ChannelOptions("item:channel", half_life=HALF_LIFE, resamples=100)
    with InfluenceView(folder) as view:
        found = analyze_channels(view, options).tables["shares"].records
    effects = {
        name: np.array([_effect(found, name, channel) for channel in asked.channels])
        for name in dict.fromkeys(record["estimator"] for record in found)
    }
    effects[JOINT] = removed_at_once(model, visits, asked.channels)
    truth = asked.removal_effects()
    task = f"planted, confounder {world}, seed {seed}"
    for system, own in {**effects, "truth": truth}.items():
        shares = shares_of(own)
        for channel, share, effect in zip(asked.channels, shares, own, strict=True):
            yield row_of(system, task, f"share of {channel}", float(share))
            yield row_of(system, task, f"effect of {channel}", float(effect))
        if system != "truth":
            off = np.abs(shares - shares_of(truth)).sum() / 2
            yield row_of(system, task, "share_error", float(off))
            yield row_of(system, task, "effect_error", float(np.abs(own - truth).mean()))


def _effect(records: list[dict[str, str | float]], estimator: str, channel: str) -> float:
    (found,) = [r for r in records if (r["estimator"], r["channel"]) == (estimator, channel)]
    return float(found["effect"])


def removed_at_once(
    model: InfluenceModel, visits: EvaluationSet, channels: tuple[str, ...]
) -> FloatArray:
    """(C,) the model's loss on conversions without any touch of a channel."""
    log = visits.log
    converted = np.flatnonzero(log.labels[visits.events] == 1)
    histories = [visits.history(row) for row in converted]
    items = log.catalogue.table["channel"].to_pylist()
    whole = _chances(model, visits, converted, histories)
    effects = []
    for channel in channels:
        own = np.array([name == channel for name in items])
        less = [history.keep(~own[history.items]) for history in histories]
        effects.append((1 - _chances(model, visits, converted, less) / whole).mean())
    return np.array(effects)


def _chances(
    model: InfluenceModel, visits: EvaluationSet, rows: np.ndarray, histories: list
) -> FloatArray:
    """(N,) probability of the label of what came, after each history."""
    items = torch.from_numpy(visits.target_items[rows].astype(np.int64))
    behaviors = torch.from_numpy(visits.target_behaviors[rows].astype(np.int64))
    found = [
        prediction.feedback(items[part].to(model.device), behaviors[part].to(model.device))
        for part, prediction in model.predict(histories)
    ]
    return torch.cat(found).double().sigmoid().cpu().numpy()


# --- redemption ------------------------------------------------------------------------------


def redemption(options: argparse.Namespace) -> None:
    """Explain the labelled contacts of the test split and credit redemptions to channels."""
    folder = options.work / "redemption"
    model = options.model or _finetuned(folder / "model", options.config, options.overrides)
    run = Run.open(model)
    rows = run.split.test
    asked = np.flatnonzero(~np.isnan(rows.log.labels[rows.events]))[: options.most]
    contacts = rows.select(asked)
    explainer = Explainer(run.model, "leave_one_out", fidelity_masks=0)
    tables = folder / f"influence_{len(contacts)}"
    explain_batch(explainer, contacts, tables, target="feedback", shard_size=32)
    channels = folder / "channels.parquet"
    write_whole(channels, partial(pq.write_table, _channels(run.model.catalogue.ids.to_pylist())))
    with InfluenceView(tables, items=channels) as view:
        analysis = analyze_channels(view, ChannelOptions("item:channel"))
    analysis.write(folder / "analysis")
    print("\n".join(analysis.shown))
    metrics = json.loads((Path(model) / "metrics.json").read_text(encoding="utf-8"))
    found = {"rows": list(_redemption_rows(analysis)), "facts": _facts(analysis, metrics)}
    write_text(folder / "rows.json", json.dumps(found, indent=1) + "\n")


def _finetuned(folder: Path, source: Path, overrides: list[str]) -> Path:
    if not (folder / "metrics.json").exists():
        config = RunConfig.load(source, [*overrides, "--output", str(folder)])
        finetune(config, resume=True)
    return folder


def _channels(items: list[str]) -> pa.Table:
    """Campaigns by type, coupons as one channel, everything bought as another."""
    names = [
        item
        if item.startswith("campaign ")
        else "coupon"
        if item.startswith("coupon ")
        else "visit"
        for item in items
    ]
    return pa.table({"item_id": items, "channel": names})


def _facts(analysis: Analysis, metrics: dict) -> dict[str, object]:
    kept = ("conversions", "explanations", "touched_conversions", "users", "method")
    return {name: analysis.facts[name] for name in kept} | {
        "test_auc": (metrics["test"] or {}).get("feedback", {}).get("auc"),
        "validation_auc": metrics["validation"]["feedback"]["auc"],
    }


def _redemption_rows(analysis: Analysis) -> Iterator[Row]:
    task = "redemption within 14 days of a contact"
    for record in analysis.tables["shares"].records:
        for name, prefix in (("share", ""), ("effect", "effect_")):
            ends = (float(record[f"{prefix}{side}"]) for side in ("low", "high"))
            metric, value = f"{name} of {record['channel']}", float(record[name])
            yield row_of(record["estimator"], task, metric, value, *ends)


# --- both ------------------------------------------------------------------------------------


def planted_figures(rows: list[Row]) -> dict[str, float]:
    """Means of the errors over seeds, by world and estimator."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] in ("share_error", "effect_error"):
            world = next(world for world in WORLDS if f"confounder {world}" in str(row["task"]))
            name = "model_joint" if row["system"] == JOINT else row["system"]
            found.setdefault(f"{row['metric']}_{world}_{name}", []).append(float(row["value"]))
    return {key: float(np.mean(values)) for key, values in found.items()}


def main(options: argparse.Namespace) -> None:
    """Do a stage, then write the rows of all finished ones."""
    if options.stage == "redemption":
        redemption(options)
    rows = planted(options)
    figures, facts = planted_figures(rows), {}
    place = options.work / "redemption" / "rows.json"
    if place.exists():
        real = json.loads(place.read_text(encoding="utf-8"))
        rows, facts = rows + real["rows"], real["facts"]
        figures |= {
            f"redemption_{row['system']}_{row['metric'].removeprefix('share of ')}": row["value"]
            for row in real["rows"]
            if row["metric"].startswith("share")
        }
    write_benchmark(
        options.output,
        name="campaign_attribution",
        protocol={
            "planted": "GENERATED logs (benchmarks/analysis/generated_campaigns.py), "
            "no data of people: four channels with known worth, search ads met by those who would "
            "have bought anyway",
            "worlds": "seen: what confounds stands in the log (product pages); hidden: it does not",
            "truth": "share of the expected conversions lost if a channel is never met",
            "share_error": "half the sum of differences of shares from the truth's, 0 to 1",
            "effect_error": "mean difference of the part of all conversions credited to a channel",
            "worth": json.dumps(WORTH),
            "model": f"GRU of width 64, {options.epochs:g} epochs on {options.users} users; "
            f"leave_one_out on {options.test_users} others, influences of a channel added up; "
            f"'{JOINT}': its prediction without any touch of the channel",
            "redemption": "Complete Journey, labelled contacts of the test split; no truth is "
            "known: influence on the model beside estimators of the same conversions",
            "redemption_facts": facts or "not run",
        },
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER, overrides=True))
