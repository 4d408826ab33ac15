"""The command line, as a user types it."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from llm_influence import __version__, cli
from llm_influence.attribution.methods import METHODS
from llm_influence.cli.demo_run import demo_config
from llm_influence.cli.options import INTERRUPTED, leaves
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import split_log
from llm_influence.errors import ConfigError, DataError
from llm_influence.influence.table_files import read_tables
from llm_influence.modeling.backbone import load_backbone
from llm_influence.run import Run
from tests import tiny


def one_plain_error(capsys) -> str:
    """The last line that the command line prints when it refuses what was asked."""
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder around an untrained tiny model."""
    folder, log = tmp_path_factory.mktemp("run"), tiny.small_log()
    tiny.tiny_model().save_pretrained(folder)
    split_log(log).save(folder / "split")
    tiny.run_config().save(folder / "run.yaml")
    return folder


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)


def test_evaluate_prints_the_model_beside_both_baselines(run):
    output = call("evaluate", "--model", run).output
    assert "ndcg@10" in output
    for system in ("llm_influence", "item-kNN", "popularity", "first-order transitions", "EASE"):
        assert system in output


def test_explain_then_report_gives_one_page_with_every_method(run, tmp_path):
    for method in ("leave_one_out", "recency"):
        result = call(
            "explain", "--model", run, "--out", tmp_path / method, "--method", method, "--seed", 3
        )
        assert result.exit_code == 0
    table = read_tables(tmp_path / "leave_one_out")
    assert set(table["user_id"].to_pylist()) == {f"u{i}" for i in range(12)}
    assert set(table["seed"].to_pylist()) == {3}
    page = tmp_path / "page.html"
    folders = ["--influence", tmp_path / "leave_one_out", "--influence", tmp_path / "recency"]
    assert call("report", "--model", run, *folders, "--out", page).exit_code == 0
    assert "leave_one_out" in page.read_text(encoding="utf-8")


def test_rules_of_a_file_hold_in_numbers_explanations_and_the_page(run, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: no lamps, if: {item.title: lamp}, then: exclude}\n")
    call(
        "explain", "--model", run, "--out", tmp_path / "e", "--method", "recency", "--rules", rules
    )
    table = read_tables(tmp_path / "e")
    titles = dict(zip(*tiny.items_table().to_pydict().values(), strict=True))
    lamps = {item for item, title in titles.items() if "lamp" in title.split()}
    assert lamps
    assert not lamps & set(table["target_id"].to_pylist())
    page = tmp_path / "page.html"
    call("report", "--model", run, "--influence", tmp_path / "e", "--out", page, "--rules", rules)
    assert "left out, else at place" in page.read_text(encoding="utf-8")
    plain, ruled = (
        call("evaluate", "--model", run, *more).output for more in ((), ("--rules", rules))
    )
    popular = [[w for w in t.splitlines() if w.startswith("popularity")] for t in (plain, ruled)]
    assert popular[0] == popular[1]  # the baselines have no rules
    assert plain != ruled
    call("explain", "--model", run, "--out", tmp_path / "plain", "--method", "recency")
    call("report", "--model", run, "--influence", tmp_path / "plain", "--out", page)
    assert "left out, else" not in page.read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"another model.*the --rules that were explained"):
        call("report", "--model", run, "--influence", tmp_path / "e", "--out", page)


def test_explain_training_names_users_and_the_report_shows_them(run, tmp_path):
    folder, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(run, folder)
    result = call("explain-training", "--model", folder, "--user", "u1", "--k", 2)
    assert "u1: " in result.output
    assert "who share" in result.output
    call("explain", "--model", folder, "--out", tmp_path / "e", "--method", "recency")
    call("report", "--model", folder, "--influence", tmp_path / "e", "--out", page)
    assert "Learned from users who" in page.read_text(encoding="utf-8")


def test_faithfulness_writes_tables_and_a_plot_and_goes_on(run, tmp_path):
    import json

    words = ["--methods", "leave_one_out,integrated_gradients", "--users", 3, "--masks", 8]
    more = ["--option", "integrated_gradients.steps=3", "--metrics", "lds,deletion_auc,abpc"]
    command = ["faithfulness", "--model", run, "--out", tmp_path, *words, *more, "--shard-size", 2]
    result = call(*command)
    assert result.exit_code == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "faithfulness.json").read_text(encoding="utf-8"))
    assert summary["plan"]["methods"]["integrated_gradients"] == {"steps": 3}
    assert {"random", "recency"} <= set(summary["baselines"])
    table = (tmp_path / "faithfulness.md").read_text(encoding="utf-8")
    for row in summary["summary"]:
        assert f"`{row['method']}`" in table
        assert row["histories"] == 3
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.parquet")}
    assert len(parts) == 2
    assert call(*command).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "shapely"], "unknown method 'shapely'"),
        (["--methods", "recency", "--metrics", "ldss"], "unknown metric 'ldss'"),
        (["--methods", "recency", "--removal", "erase"], "unknown removal 'erase'"),
        (["--methods", "recency", "--option", "steps=3"], "cannot read 'steps'"),
        (["--methods", "recency", "--target", "item:none"], "'none' is no item"),
    ],
)
def test_a_mistake_in_a_comparison_is_one_plain_line(
    run, tmp_path, monkeypatch, capsys, words, message
):
    command = ["llm-influence", "faithfulness", "--model", str(run), "--out", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", [*command, *words])
    assert message in one_plain_error(capsys)


def test_explain_reads_another_log_and_a_methods_own_options(run, tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(tiny.events_table(users=3, seed=9), tmp_path / "new.parquet")
    words = ["--log", tmp_path / "new.parquet", "--method", "integrated_gradients"]
    result = call("explain", "--model", run, "--out", tmp_path / "o", *words, "--option", "steps=4")
    assert result.exit_code == 0
    assert set(read_tables(tmp_path / "o")["evaluations"].to_pylist()) == {2 * 4 + 2}


def test_explain_measures_for_the_card_what_it_is_told(run, tmp_path):
    words = ["--target", "slate:3", "--fidelity-masks", 4, "--agree-with", "recency"]
    assert call("explain", "--model", run, "--out", tmp_path / "o", *words).exit_code == 0
    table = read_tables(tmp_path / "o")
    assert set(table["target"].to_pylist()) == {"slate"}
    assert set(table["fidelity_masks"].to_pylist()) == {4}
    assert set(table["agreement_with"].to_pylist()) == {"recency"}
    assert table["prediction"].null_count == len(table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "shapely"], "unknown method 'shapely'"),
        (["--option", "steps=2"], "unknown option 'steps'"),
        (["--option", "steps"], "cannot read 'steps'"),
        (["--removal", "erase"], "removal 'erase'"),
        (["--target", "slate:many"], "cannot read 'slate:many'"),
        (["--agree-with", "group_shapley"], "the method itself"),
        (["--target", "item:none"], "'none' is no item"),
        (["--log", "missing.parquet"], "missing.parquet"),
    ],
)
def test_a_users_mistake_is_one_plain_line(run, tmp_path, monkeypatch, capsys, words, message):
    command = ["llm-influence", "explain", "--model", str(run), "--out", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", [*command, *words])
    assert message in one_plain_error(capsys)


def test_tokenizer_writes_a_backbone_of_the_sizes_asked_for(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(tiny.events_table(), tmp_path / "log.parquet")
    pq.write_table(tiny.items_table(), tmp_path / "items.parquet")
    data = ["--data.source", tmp_path / "log.parquet", "--data.items", tmp_path / "items.parquet"]
    sizes = ["--vocab-size", 400, "--layers", 1, "--width", 16, "--heads", 2, "--context", 64]
    words = ["--out", tmp_path / "own", *sizes, *data, "--rendering.template", "prose"]
    assert "tokens from" in call("tokenizer", *words).output
    made = load_backbone(str(tmp_path / "own"))
    assert (made.kind, made.width, made.context) == ("decoder", 16, 64)
    assert made.model.config.num_hidden_layers == 1


def test_a_search_then_its_best_run_then_an_update_of_it(tmp_path):
    """Each command takes what the one before it left."""
    import pyarrow.compute as pc

    whole, log = tiny.events_table(users=24), tmp_path / "log.parquet"
    pq.write_table(whole.filter(pc.less(whole["timestamp"], 1_600_000)), log)
    pq.write_table(whole, tmp_path / "newer.parquet")
    data = {"source": str(log)}
    base = tiny.run_config(data=data, train={"epochs": 1}).model_dump(mode="json")
    space = {"train.learning_rate": {"low": 1e-3, "high": 1e-2}}
    search = {"base": base, "space": space, "trials": 2, "output": str(tmp_path / "search")}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(search), encoding="utf-8")
    found = call("search", tmp_path / "space.yaml", "--trials", 1)
    assert "trial 0000: complete" in found.output
    best = tmp_path / "search" / "best.yaml"
    assert str(best) in found.output
    done = call("finetune", "--config", best, "--skip-test")
    assert "not measured" in done.output
    run = tmp_path / "search" / "best"
    words = ["--log", tmp_path / "newer.parquet", "--out", tmp_path / "updated"]
    updated = call("update", "--model", run, *words, "--update.replay", 0.3)
    assert updated.exit_code == 0
    assert {line[:3] for line in updated.output.splitlines()} >= {"old", "new"}
    assert RunConfig.load(tmp_path / "updated" / "run.yaml").update.replay == 0.3


def test_help_of_finetune_lists_every_option_of_the_configuration():
    shown = CliRunner().invoke(cli.app, ["finetune", "--help"], env={"COLUMNS": "200"}).output
    for leaf in leaves(RunConfig):
        assert f"--{leaf.name}" in shown


def test_options_of_the_command_line_reach_the_configuration_and_win_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {epochs: 2, batch_size: 8}")
    words = ["config", "--config", tmp_path / "run.yaml", "--train.epochs", "3"]
    train = RunConfig.model_validate(yaml.safe_load(call(*words).output)).train
    assert (train.epochs, train.batch_size) == (3, 8)


def test_the_printed_defaults_are_the_defaults_and_the_schema_is_json():
    printed = yaml.safe_load(call("config", "--defaults").output)
    assert RunConfig.model_validate(printed) == RunConfig()
    assert "train" in json.loads(call("config", "--schema").output)["properties"]


def test_env_names_versions_and_cores_and_version_is_one_line():
    facts = json.loads(call("env", "--json").stdout)
    assert facts["llm_influence"] == call("--version").output.strip() == __version__
    assert facts["cores"] >= 1
    assert facts["torch"][0].isdigit()


def test_an_interrupt_is_one_line_that_says_how_to_continue(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", interrupted)
    result = call("evaluate", "--model", run)
    assert result.exit_code == INTERRUPTED
    assert result.output.splitlines() == ["interrupted. Run the same command again to continue."]


def test_results_are_printed_as_json_for_programs(run):
    items = json.loads(call("evaluate", "--model", run, "--json").stdout)["items"]
    assert {"system", "ndcg@10"} <= items[0].keys()
    assert [row["method"] for row in json.loads(call("methods", "--json").stdout)] == [*METHODS]


def test_methods_lists_every_method_with_its_caution():
    output = call("methods").output
    for spec in METHODS.values():
        assert spec.name in output
        assert spec.caution in output


def test_the_shipped_configuration_is_the_demo_with_more_epochs():
    shipped = RunConfig.load("configs/movielens_100k.yaml")
    same = ["--output", shipped.output, "--train.epochs", str(shipped.train.epochs)]
    assert shipped == demo_config(same)


def test_users_skipped_and_users_drawn_are_others(run):
    opened = Run.open(run)
    first, then = opened.test_histories(5, seed=1), opened.test_histories(5, seed=1, skip=5)
    everyone = {history.user_id for history in [*first, *then]}
    assert len(everyone) == 10
    assert [h.user_id for h in first] == [h.user_id for h in opened.test_histories(5, seed=1)]
    assert len(opened.test_histories(1000)) == len(opened.split.test)


@pytest.fixture(scope="module")
def liking(tmp_path_factory):
    """A run whose model also predicts whether a value is at least 3, and reads when."""
    folder, log = tmp_path_factory.mktemp("liking"), tiny.small_log()
    head = {"weight": 1.0, "kind": "binary", "positive_from": 3.0}
    options = {"feedback_head": head, "when": True}
    tiny.tiny_model(**options).save_pretrained(folder)
    split_log(log).save(folder / "split")
    tiny.run_config(model=options).save(folder / "run.yaml")
    return folder


def explained(run, out, *words):
    method = () if "--method" in words else ("--method", "leave_one_out")
    words = ("--model", run, "--out", out, "--fidelity-masks", 0, *method, *words)
    result = call("explain", *words)
    assert result.exit_code == 0
    return read_tables(out)


def test_explain_takes_a_sample_of_users_or_of_questions_with_a_label(liking, tmp_path):
    some = explained(liking, tmp_path / "users", "--sample", 4, "--seed", 1)
    users = set(some["user_id"].to_pylist())
    assert len(users) == 4
    again = explained(liking, tmp_path / "again", "--sample", 4, "--seed", 2)
    assert set(again["user_id"].to_pylist()) != users
    words = ["--examples", "test", "--target", "feedback"]
    explained(liking, tmp_path / "all", *words)
    values = pq.read_table(tmp_path / "all" / "outcomes.parquet")["value"].to_pylist()
    label = next(value for value in values if value is not None)
    explained(liking, tmp_path / "some", *words, "--label", label)
    found = pq.read_table(tmp_path / "some" / "outcomes.parquet")["value"].to_pylist()
    assert found == [label] * values.count(label)
    explained(liking, tmp_path / "two", *words, "--sample", 2)
    assert len(pq.read_table(tmp_path / "two" / "outcomes.parquet")) == 2


def test_explain_asks_all_at_one_moment(liking, tmp_path):
    soon, late = (
        explained(liking, tmp_path / year, "--query-time", f"{year}-01-01T00:00:00Z")
        for year in ("1971", "1999")
    )
    assert not soon["full_value"].equals(late["full_value"])


def test_a_report_on_questions_has_a_table_a_head_and_the_analyses(liking, tmp_path):
    explained(liking, tmp_path / "influence", "--examples", "test", "--target", "feedback")
    analyzed = call("analyze", "factors", tmp_path / "influence", "--out", tmp_path / "factors")
    assert analyzed.exit_code == 0
    words = ["--influence", tmp_path / "influence", "--analysis", tmp_path / "factors"]
    page = tmp_path / "page.html"
    assert call("report", "--model", liking, *words, "--out", page).exit_code == 0
    html = page.read_text(encoding="utf-8")
    for heading in ("Feedback", "Items", "Behaviors"):
        assert f'<h3 class="head">{heading}</h3>' in html
    assert "Which factors matter" in html
    assert "factors_ranking.csv" in html
    assert ">Recommended<" not in html  # the history before a question is not the user's end


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "1"], "--label 1.0"),
        (["--examples", "test", "--label", "9"], "unknown label '9'"),
        (["--examples", "test", "--query-time", "1999-01-01T00:00:00Z"], "its own query time"),
        (["--query-time", "1970-01-01T00:00:00Z"], "has events up to"),
        (["--query-time", "yesterday"], "an ISO time with a zone"),
        (["--query-time", "1999-01-01"], "an ISO time with a zone"),
    ],
)
def test_a_mistake_about_what_is_asked_is_one_plain_line(
    liking, tmp_path, monkeypatch, capsys, words, message
):
    command = ["llm-influence", "explain", "--model", str(liking), "--out", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", [*command, *words])
    assert message in one_plain_error(capsys)


def test_a_label_is_asked_of_a_model_that_reads_labels(run):
    with pytest.raises(ConfigError, match="reads no labels"):
        Run.open(run).examples("test", label=1)


def test_made_up_accounts_are_written_and_said_to_be_made_up(tmp_path):
    output = call("planted-fraud", "--out", tmp_path, "--accounts", 20).output
    assert "20 generated accounts" in output
    assert (tmp_path / "truth.parquet").exists()


def test_factors_stand_in_the_demos_report_where_there_are_users_enough(run, tmp_path):
    from llm_influence.cli.demo_run import ANALYSED, _analyse

    said = []
    folder = tmp_path / "influence" / ANALYSED
    explained(run, folder, "--sample", 3)
    assert _analyse(tmp_path, said.append) == []
    assert "10 users" in said[0]
    shutil.rmtree(folder)
    explained(run, folder)
    (out,) = _analyse(tmp_path, said.append)
    assert (out / "factors.json").exists()
