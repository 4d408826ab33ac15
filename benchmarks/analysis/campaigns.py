"""What are channels credited with, by the model and by what people use? Generated and real.

    python -m benchmarks.analysis.campaigns --stage planted
    python -m benchmarks.analysis.campaigns --stage redemption [--model FOLDER]

`planted`: generated campaign logs (benchmarks/analysis/generated_campaigns.py) whose true removal effects are
known, in a world whose confounder stands in the log and in one where it is hidden. Every
estimator of `llm-influence analyze attribution` against the truth; also the model asked again with
all touches of a channel removed at once. `redemption`: Complete Journey, will a household redeem a
coupon within 14 days of a contact; no truth is known there, the estimators stand beside each
other. Each stage goes on where it was broken off and keeps what it found under --output; the JSON
has all stages that are done: docs/benchmarks/campaign_attribution.json.
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
from benchmarks.harness import write_benchmark
from benchmarks.whole_log import fitted
from llm_influence.analysis.channels import AttributionOptions, analyze_attribution, shares_of
from llm_influence.analysis.output import Analysis
from llm_influence.analysis.tables import InfluenceView
from llm_influence.attribution.explainer import Explainer
from llm_influence.batch.explain import explain_batch
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
Row = dict[str, str | float]


# --- planted ---------------------------------------------------------------------------------


def run_config(options: argparse.Namespace, seed: int) -> RunConfig:
    """A small GRU that foretells the label of visits."""
    return RunConfig.model_validate(
        {
            "output": str(options.output),
            "rendering": {"template": "fused", "max_events": 41},
            "model": {
                "backbone": "gru",
                "recurrent": {"width": 64},
                "dropout": 0.1,
                "adapter": {"kind": "full"},
                "item_head": {"weight": 0.0},
                "behavior_head": {"weight": 0.0},
                "feedback_head": {"weight": 1.0, "label": "label", "behaviors": ["visit"]},
                "when": True,
            },
            "train": {
                "epochs": options.epochs,
                "batch_size": 128,
                "learning_rate": 4e-3,
                "item_learning_rate": 4e-3,
                "weight_decay": 0.0,
                "precision": "fp32",
                "seed": seed,
            },
            "evaluation": {"exclude_seen": False},
        }
    )


def planted(options: argparse.Namespace) -> None:
    """Every world and seed, each kept when it is done."""
    for seed in options.seeds:
        for world in WORLDS:
            folder = options.output / "planted" / f"{world}_{seed}"
            if (folder / "rows.json").exists():
                continue
            train, asked = (generate(world, n, seed) for n in (options.users, options.test_users))
            model = fitted(run_config(options, seed), train.log, folder)
            rows = list(planted_rows(model, asked, world, seed, folder / "influence"))
            write_text(folder / "rows.json", json.dumps(rows, indent=1) + "\n")
            for row in rows:
                if "error" in str(row["metric"]):
                    print(row, flush=True)


def planted_rows(
    model: InfluenceModel, asked: Campaigns, world: World, seed: int, folder: Path
) -> Iterator[Row]:
    """Shares and effects of every estimator, and how far they are from the truth."""
    log = asked.log
    visits = EvaluationSet(log, np.arange(len(log)), log.lengths.astype(np.int64) - 1)
    explainer = Explainer(model, "leave_one_out", fidelity_masks=0)
    explain_batch(explainer, visits, folder, target="feedback", progress=False)
    options = AttributionOptions("item:channel", half_life=HALF_LIFE, resamples=100)
    with InfluenceView(folder) as view:
        found = analyze_attribution(view, options).tables["shares"].records
    effects = {
        name: np.array([_effect(found, name, channel) for channel in asked.channels])
        for name in dict.fromkeys(record["estimator"] for record in found)
    }
    effects[JOINT] = removed_at_once(model, visits, asked.channels)
    truth = asked.removal_effects()
    task = {"task": f"planted, confounder {world}, seed {seed}"}
    for system, found_effects in {**effects, "truth": truth}.items():
        row = {**task, "system": system}
        shares = shares_of(found_effects)
        for channel, share, effect in zip(asked.channels, shares, found_effects, strict=True):
            yield {**row, "metric": f"share of {channel}", "value": float(share)}
            yield {**row, "metric": f"effect of {channel}", "value": float(effect)}
        if system != "truth":
            off = np.abs(shares - shares_of(truth)).sum() / 2
            yield {**row, "metric": "share_error", "value": float(off)}
            off = np.abs(found_effects - truth).mean()
            yield {**row, "metric": "effect_error", "value": float(off)}


def _effect(records: list[dict[str, str | float]], estimator: str, channel: str) -> float:
    (found,) = [r for r in records if (r["estimator"], r["channel"]) == (estimator, channel)]
    return float(found["effect"])


def removed_at_once(
    model: InfluenceModel, visits: EvaluationSet, channels: tuple[str, ...]
) -> FloatArray:
    """(C,) what the model itself loses on conversions without any touch of a channel."""
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
    """Explain the labelled contacts of the test split and lay redemptions to channels."""
    folder = options.output / "redemption"
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
        analysis = analyze_attribution(view, AttributionOptions("item:channel"))
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
    for record in analysis.tables["shares"].records:
        row = {"system": record["estimator"], "task": "redemption within 14 days of a contact"}
        for name, prefix in (("share", ""), ("effect", "effect_")):
            bounds = {side: float(record[f"{prefix}{side}"]) for side in ("low", "high")}
            metric = f"{name} of {record['channel']}"
            yield {**row, "metric": metric, "value": float(record[name]), **bounds}


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
    """Run a stage, then write what all finished ones found."""
    torch.set_num_threads(options.threads)
    {"planted": planted, "redemption": redemption}[options.stage](options)
    rows: list[Row] = []
    for world in WORLDS:
        for seed in options.seeds:
            place = options.output / "planted" / f"{world}_{seed}" / "rows.json"
            rows += json.loads(place.read_text(encoding="utf-8")) if place.exists() else []
    figures, facts = planted_figures(rows), {}
    place = options.output / "redemption" / "rows.json"
    if place.exists():
        real = json.loads(place.read_text(encoding="utf-8"))
        rows, facts = rows + real["rows"], real["facts"]
        figures |= {
            f"redemption_{row['system']}_{row['metric'].removeprefix('share of ')}": row["value"]
            for row in real["rows"]
            if row["metric"].startswith("share")
        }
    print(json.dumps(figures, indent=1))
    write_benchmark(
        options.json,
        name="campaign_attribution",
        protocol={
            "planted": "GENERATED logs (benchmarks/analysis/generated_campaigns.py), no data of people: four "
            "channels with known worth, search ads met by those who would have bought anyway",
            "worlds": "seen: what confounds stands in the log (product pages); hidden: it does not",
            "truth": "share of the expected conversions lost if a channel is never met",
            "share_error": "half the sum of differences of shares from the truth's, 0 to 1",
            "effect_error": "mean difference of the part of all conversions laid to a channel",
            "worth": json.dumps(WORTH),
            "model": f"GRU of width 64, {options.epochs:g} epochs on {options.users} users; "
            f"leave_one_out on {options.test_users} others, influences of a channel added up; "
            f"'{JOINT}' asks it again without any touch of the channel",
            "redemption": "Complete Journey, labelled contacts of the test split; no truth is "
            "known: influence on the model beside estimators of the same conversions",
            "redemption_facts": facts or "not run",
        },
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("planted", "redemption"), required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/campaign_attribution"))
    parser.add_argument(
        "--json", type=Path, default=Path("docs/benchmarks/campaign_attribution.json")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=6000)
    parser.add_argument("--test-users", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--config", type=Path, default=REDEMPTION)
    parser.add_argument("--model", type=Path, help="a run of the redemption configuration")
    parser.add_argument("--most", type=int, help="labelled contacts to explain; default: all")
    parser.add_argument("--threads", type=int, default=1)
    options, options.overrides = parser.parse_known_args()
    return options


if __name__ == "__main__":
    main(_options())
