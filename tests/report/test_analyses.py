"""Analyses on the page: known and unknown ones, whole in their CSV, harmless, refused if broken."""

import base64
import csv
import io
import re

import pytest

from llm_influence.analysis.output import Analysis, Table, new_figure
from llm_influence.errors import DataError
from llm_influence.report.analyses import MOST_ROWS, read_analyses
from llm_influence.report.page import render_report
from llm_influence.report.tables import ReportFacts, flat_facts
from tests.report.conftest import EVIL, Tags

RANKING = [
    {"factor": "recency", "spread": 0.51234, "matters": True, "p_value": None},
    {"factor": "gap", "spread": -0.02, "matters": False, "p_value": 0.25},
]


def written(folder, name="factors", tables=None, **facts):
    tables = {"ranking": Table(RANKING, drawn())} if tables is None else tables
    Analysis(name, {"users": 1234, **facts}, tables).write(folder)
    return folder


def drawn():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    return figure


def page(*folders):
    return render_report(influences=[], facts=ReportFacts("A report"), analyses=folders)


def links(html):
    """Name and text of every CSV of the page."""
    found = re.findall(
        r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html
    )
    return {name: base64.b64decode(text).decode() for name, text in found}


def test_an_analysis_is_a_section_with_figure_table_facts_and_csv(tmp_path):
    html = page(written(tmp_path, left_out={"item:genres": "free text"}))
    Tags(html)
    assert "Which factors matter" in html
    assert "<dt>users</dt><dd>1,234</dd>" in html
    assert "<dt>left out: item:genres</dt><dd>free text</dd>" in html
    assert '<td class="num">0.512</td>' in html
    assert "<td>yes</td>" in html
    (image,) = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert base64.b64decode(image) == (tmp_path / "factors_ranking.svg").read_bytes()
    assert links(html) == {"factors_ranking.csv": (tmp_path / "factors_ranking.csv").read_text()}


def test_a_png_is_taken_where_there_is_no_svg(tmp_path):
    (written(tmp_path) / "factors_ranking.svg").unlink()
    (image,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page(tmp_path))
    assert base64.b64decode(image) == (tmp_path / "factors_ranking.png").read_bytes()


def test_names_that_nobody_knows_are_shown_too_and_all_folders_in_their_order(tmp_path):
    first = written(tmp_path / "a", "tea_leaves", {"deep_reading": Table([{"leaf": "mint"}])})
    sections = read_analyses([first, written(tmp_path / "b")])
    assert [section.title for section in sections] == ["Tea leaves", "Which factors matter"]
    assert [table.title for table in sections[0].tables] == ["Deep reading"]
    assert sections[0].tables[0].figure is None


def test_a_long_table_is_cut_on_the_page_and_whole_in_its_csv(tmp_path):
    rows = [{"step": step} for step in range(MOST_ROWS + 7)]
    html = page(written(tmp_path, "long", {"steps": Table(rows), "none": Table([])}))
    assert f"{MOST_ROWS + 7} rows, the first {MOST_ROWS} here and all in the CSV" in html
    assert f'<td class="num">{MOST_ROWS - 1}</td>' in html
    assert f'<td class="num">{MOST_ROWS}</td>' not in html
    text = links(html)["long_steps.csv"]
    assert [int(row["step"]) for row in csv.DictReader(io.StringIO(text))] == [
        row["step"] for row in rows
    ]
    assert "Nothing was found." in html


def test_nothing_of_an_analysis_is_run_or_fetched(tmp_path):
    table = Table([{EVIL: EVIL}], drawn())
    written(tmp_path, "evil", {"t": table, EVIL.replace("/", ""): Table([{"a": EVIL}])}, fact=EVIL)
    (tmp_path / "evil_t.svg").write_text("<svg onload='alert(1)'><script>alert(1)</script></svg>")
    html = page(tmp_path)
    Tags(html)
    assert "<script" not in html
    assert "onload" not in html
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(re.match(r"#|data:(image/|text/csv)", source) for source in sources)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no analysis"),
        ({"other.json": "[1, 2]"}, "holds no analysis"),
        ({"factors.json": "{"}, r"factors.json: cannot be read"),
        ({"factors.json": '{"analysis": "factors"}'}, "without a name or tables"),
        ({"x.json": '{"analysis": "x", "tables": {"t": [{"a": [1]}]}}'}, "'t' that is no list"),
        ({"x.json": '{"analysis": "x", "tables": {"t": {"a": 1}}}'}, "'t' that is no list"),
    ],
)
def test_a_folder_without_a_sound_analysis_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_analyses([tmp_path])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        read_analyses([tmp_path / "missing"])


def test_facts_are_one_level_of_texts():
    assert flat_facts({"a_b": {"c": 0.12345, "d": [1, "x"]}, "e": None, "f": [], "g": True}) == {
        "a b: c": "0.123",
        "a b: d": "1, x",
        "g": "yes",
    }


def test_every_figure_of_the_page_has_its_numbers_as_csv(make):
    metrics = [{"head": "feedback", "system": "a", "auc": 0.75}, {"head": "items", "system": "a"}]
    html = render_report(
        influences=[make([0.5, -1.0], titles=["One, two", "Three"])],
        facts=ReportFacts("A report", metrics=metrics),
    )
    tables = {name: list(csv.DictReader(io.StringIO(text))) for name, text in links(html).items()}
    assert set(tables) == {
        *("metrics_feedback.csv", "metrics_items.csv", "prediction_1.csv", "by_recency.csv"),
        *("by_time_since_the_event_before.csv", "by_behaviour.csv", "by_value.csv"),
    }
    first = tables["prediction_1.csv"][0]
    assert (first["title"], float(first["score_integrated_gradients"])) == ("One, two", 0.5)
    assert tables["metrics_feedback.csv"] == [{"system": "a", "auc": "0.75"}]
    assert [float(row["mean"]) for row in tables["by_recency.csv"]] == [-1.0, 0.5]
