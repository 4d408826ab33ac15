"""Which channel led to a purchase? On a generated log of advertising contacts.

    python examples/advertising.py [FOLDER]

Email works, banners do not, and both come before most purchases.
"""

import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence import (
    Behavior,
    ChannelOptions,
    Explainer,
    InfluenceView,
    Run,
    RunConfig,
    analyze_channels,
    explain_batch,
    finetune,
)


def contacts(users: int = 400) -> pa.Table:
    """Contacts by channel, then "buy" or "leave": every email makes "buy" likelier."""
    draw, rows = random.Random(1), []
    for user in range(users):
        channels = draw.choices(["email", "banner", "search"], k=5)
        buys = draw.random() < 0.05 + 0.4 * channels.count("email")
        time = 1_700_000_000 + 50_000 * user
        for channel, behavior in [
            *((c, "contact") for c in channels),
            ("shop", "buy" if buys else "leave"),
        ]:
            time += draw.randrange(3600, 86_400)
            rows.append(
                {"user_id": f"u{user}", "item_id": channel, "behavior": behavior, "timestamp": time}
            )
    return pa.Table.from_pylist(rows)


def main(folder: str = "runs/advertising") -> dict[str, float]:
    """Train, explain what came last, credit channels; returns the model's share by channel."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(contacts(), out / "contacts.parquet")
    config = RunConfig.model_validate(
        {
            "output": str(out / "run"),
            "data": {
                "source": str(out / "contacts.parquet"),
                "split": {"kind": "global_time", "examples": "all", "behaviors": ["buy", "leave"]},
            },
            "model": {
                "backbone": "gru",
                "adapter": {"kind": "full"},
                "item_head": {"weight": 0},
                "behavior_head": {"weight": 1},
            },
            "train": {"epochs": 12, "batch_size": 8, "learning_rate": 5e-3},
        }
    )
    run = Run.open(finetune(config, resume=True).folder)
    explain_batch(
        Explainer(run.model), run.examples("test"), out / "influence", target=Behavior("buy")
    )
    options = ChannelOptions(
        channel="item_id", touches=("contact",), conversion="buy", resamples=50
    )
    with InfluenceView(out / "influence") as view:
        analysis = analyze_channels(view, options)
    for line in analysis.shown:
        print(line)
    analysis.write(out / "analysis")
    shares = analysis.tables["shares"].records
    return {row["channel"]: row["share"] for row in shares if row["estimator"] == "model"}


if __name__ == "__main__":
    main(*sys.argv[1:])
