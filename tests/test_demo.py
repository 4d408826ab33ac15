"""The whole way on real data: MovieLens films, MiniLM with LoRA, explanations, the page."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples import quickstart
from llm_influence.cli.demo_run import METHODS, run_demo
from llm_influence.config.run import RunConfig
from llm_influence.datasets.public import load_movielens_100k
from llm_influence.influence.table import explanation_starts
from llm_influence.influence.table_files import read_tables


@pytest.mark.e2e
def test_a_part_of_movielens_goes_from_log_to_report_and_is_reused(tmp_path):
    films = load_movielens_100k()
    users = films.user_ids.to_pylist()[:40]
    pq.write_table(films.select(users).to_table(), tmp_path / "log.parquet")
    pq.write_table(films.catalogue.table, tmp_path / "films.parquet")
    config = RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "data": {
                "source": str(tmp_path / "log.parquet"),
                "items": str(tmp_path / "films.parquet"),
            },
            "rendering": {"max_events": 20},
            "model": {"layers": 2},
            "train": {"epochs": 1},
        }
    )
    said = []
    result = run_demo(config, users=3, say=said.append)

    page = result.report.read_text(encoding="utf-8")
    table = read_tables([tmp_path / "run" / "influence" / method for method in METHODS])
    assert len(explanation_starts(table)) == result.explanations == 3 * len(METHODS)
    for name in table["target_name"].unique().to_pylist():
        assert name.replace("&", "&amp;").replace("'", "&#39;") in page
    systems = [row["system"].split()[0] for row in result.metrics]
    assert systems[:3] == ["llm_influence", "item-kNN", "popularity"]
    assert {"revisits", "linear", "EASE", "memory"} <= set(systems)
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result.metrics[0]["ndcg@10"] == pytest.approx(
        measured["test"]["items"]["ndcg@10"], abs=1e-6
    )
    assert np.isfinite(table["score"].to_numpy()).all()

    influence = quickstart.main(str(tmp_path / "run"), users[0])
    assert str(influence).count("\n") >= 3

    before = (tmp_path / "run" / "heads.safetensors").read_bytes()
    again = run_demo(config, users=3, say=said.append)
    assert any("using it" in line for line in said)
    assert (tmp_path / "run" / "heads.safetensors").read_bytes() == before
    assert again.metrics == result.metrics
