"""The page: escaped, self-contained, in proportion, and honest about what it is given."""

import errno
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_influence.analysis.output import NOTHING
from llm_influence.errors import DataError, OutputError, SchemaError
from llm_influence.evaluation.evaluate import verdict
from llm_influence.influence.facts import Player
from llm_influence.influence.influence import to_arrow
from llm_influence.influence.slate_change import SlateChange
from llm_influence.report.page import Scale, build_report, render_report
from llm_influence.report.tables import ReportFacts, metric_grid
from tests.report.conftest import EVIL, Tags

METRICS = [
    {"system": "this model", "split": "test", "hr10": 0.2, "ndcg10": 0.10, "users": 943},
    {"system": "popularity", "split": "test", "hr10": 0.1, "ndcg10": 0.05, "users": 943},
]


@pytest.fixture
def facts():
    return ReportFacts(
        title="A report",
        model={"Backbone": "MiniLM"},
        protocol={"Split": "leave one out"},
        metrics=METRICS,
        recommendations={"196": [("Star Wars (1977)", 0.032), ("Fargo (1996)", 0.016)]},
    )


def test_the_page_holds_what_it_should(make, facts, tmp_path):
    influences = [
        make([0.5, -1.0, 2.0]),
        make([0.2, 0.3, 0.5], method="attention_rollout", units="share"),
        make([-1.0], user_id="7", target_name="Alien (1979)"),
    ]
    out = build_report(influences=influences, facts=facts, out=tmp_path / "new" / "report.html")
    page = out.read_text()
    tags = Tags(page).found
    assert sum(tag == "article" for tag, _ in tags) == 2
    assert "“Star Wars (1977)” is recommended (3.2%)" in page
    assert "Your only action speaks against “Alien (1979)”" in page
    assert "removal mask · completeness gap 0.40% · 3 evaluations · seed 7" in page
    assert "2 older events left out" in page
    for title in ("By recency", "By behaviour", "By value", "By time since the event before"):
        assert title in page
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_the_page_needs_nothing_but_itself(make, facts):
    page = render_report(influences=[make([0.5, -1.0])], facts=facts)
    for tag, attributes in Tags(page).found:
        assert tag not in {"script", "link", "img", "iframe"}
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:text/csv;"))
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_says_which_baseline_is_ahead_and_what_the_memory_adds(make):
    systems = (("llm_influence", 0.1), ("popularity", 0.2))
    records = [{"system": name, "ndcg@10": value} for name, value in systems]
    said = verdict(records, 10)
    assert "popularity is ahead" in said
    assert not verdict(records[:1], 10)
    facts = ReportFacts("Title", metrics=records, verdict=said)
    parts = {"memory_shares": np.array([0.4, 0.0]), "memory_log_odds": np.array([0.0, -0.3])}
    page = render_report(influences=[replace(make([0.5, -1.0]), **parts)], facts=facts)
    assert said in page
    assert (
        page.index("How well it predicts") < page.index(said) < page.index("Predictions explained")
    )
    assert "60% from the language model with associations, 40% from transitions" in page
    assert "-0.30 log-odds by association" in page


def test_everything_is_escaped(make):
    facts = ReportFacts(
        title=EVIL,
        model={EVIL: EVIL},
        protocol={EVIL: EVIL},
        metrics=[{"system": EVIL, EVIL: 0.1}],
        recommendations={EVIL: [(EVIL, 0.1)]},
        rules={EVIL: [EVIL]},
        verdict=EVIL,
        learned={EVIL: [EVIL]},
    )
    influences = [
        make(
            [0.5, -1.0], titles=[EVIL, EVIL], behaviors=[EVIL, EVIL], user_id=EVIL, target_name=EVIL
        ),
        make(
            [0.5, -1.0],
            titles=[EVIL, EVIL],
            behaviors=[EVIL, EVIL],
            user_id=EVIL,
            target_name=EVIL,
            method=EVIL,
        ),
    ]
    page = render_report(influences=influences, facts=facts)
    assert "<script" not in page
    names = {name for _, attributes in Tags(page).found for name in attributes}
    assert names <= {
        *("lang", "charset", "name", "content", "class", "id", "style", "href", "scope", "title"),
        *("colspan", "role", "open", "aria-label", "aria-labelledby", "aria-hidden", "viewbox"),
        *("download", "preserveaspectratio", "x", "y", "width", "height", "x1", "x2", "y1", "y2"),
    }


def test_bars_are_in_proportion_to_scores(make, facts):
    page = render_report(influences=[make([0.5, -1.0, 2.0])], facts=facts)
    timeline = page[page.index('class="timeline"') : page.index("How it was computed")]
    bars = re.findall(r'<i( class="\w+")? style="left:([\d.]+)%;width:([\d.]+)%', timeline)
    assert [kind for kind, _, _ in bars] == ["", ' class="against"', ""]
    widths = np.array([float(width) for _, _, width in bars])
    np.testing.assert_allclose(widths / widths[2], [0.25, 0.5, 1.0], atol=2e-3)


@given(st.lists(st.floats(-100, 100), min_size=1), st.booleans())
def test_every_bar_lies_on_its_track(scores, share):
    scale = Scale.fit(scores, share=share)
    for score in scores:
        bar = scale.bar(score)
        assert -1e-6 <= bar.left <= bar.left + bar.width <= 100 + 1e-6
        assert bar.width == pytest.approx(abs(score) * scale.unit)


def test_methods_of_one_prediction_share_a_case_and_other_events_do_not(make, facts):
    page = render_report(
        influences=[
            make([1.0, 2.0]),
            make([2.0, 1.0], method="leave_one_out"),
            make([1.0], method="recency", units="share"),
        ],
        facts=facts,
    )
    assert page.count("<article") == 2


def test_only_the_first_users_are_shown_but_all_are_averaged(make, facts):
    influences = [make([1.0, -1.0], user_id=str(user)) for user in range(30)]
    page = render_report(influences=to_arrow(influences), facts=facts, users=4)
    assert page.count("<article") == 4
    assert "30 explanations of predictions for 30 users" in page
    assert '<th scope="row">rate</th><td class="num">60</td>' in page


def test_twelve_users_of_fifty_events_stay_small(make, facts):
    draw = np.random.default_rng(0)
    influences = [
        make(draw.normal(size=50), user_id=str(user), method=method, titles=["A film (1999)"] * 50)
        for user in range(12)
        for method in ("integrated_gradients", "leave_one_out")
    ]
    assert len(render_report(influences=influences, facts=facts).encode()) < 400_000


def test_the_gates_of_a_recurrence_stand_beside_the_events_and_nowhere_else(make, facts):
    gated = replace(make([0.5, -1.0]), gates=np.array([0.25, 0.75]))
    page = render_report(influences=[gated], facts=facts)
    assert re.findall(r'<span class="gate">([^<]*)</span>', page) == ["25%", "75%"]
    assert "what, gate, item" in page
    plain = render_report(influences=[make([0.5, -1.0])], facts=facts)
    assert 'class="gate"' not in plain
    assert "The gate belongs to the recurrence" not in plain


def test_the_share_through_the_memory_is_shown_escaped_and_only_where_there_is_one(make, facts):
    parts = {"memory_shares": np.array([0.5, 0.0]), "memory_log_odds": np.zeros(2)}
    record = make([0.5, -1.0], titles=[EVIL, "B"], **parts)
    page = render_report(influences=[record], facts=facts)
    Tags(page)
    assert EVIL not in page
    assert "(people who rated “&lt;script&gt;" in page
    assert re.findall(r'<span class="gate memory">([^<]*)</span>', page) == ["50%", "0%"]
    plain = render_report(influences=[make([0.5, -1.0])], facts=facts)
    assert "memory" not in plain


def test_metrics_by_kind_of_question_have_readable_headings():
    table = metric_grid([{"system": "this model", "ndcg10": 0.1, "ndcg, new to the user": 0.05}])
    assert [cell.text for cell in table.heads][1:] == ["NDCG@10", "NDCG, new to the user"]


def test_nothing_to_explain_is_said():
    page = render_report(influences=[], facts=ReportFacts("Empty"))
    assert "The table holds no explanation." in page
    Tags(page)


def test_zero_scores_and_missing_numbers_are_drawn(make, facts):
    page = render_report(influences=[make([0.0, 0.0], values=[None, None])], facts=facts)
    assert "None of your 2 actions moves" in page
    assert "nan" not in page.lower().replace("dominan", "")


def test_the_best_of_each_split_is_marked():
    records = [*METRICS, {"system": "this model", "split": "validation", "hr10": 0.5}]
    table = metric_grid(records)
    assert [cell.text for cell in table.heads] == ["system", "split", "HR@10", "NDCG@10", "users"]
    best = [(row[0].text, cell.text) for row in table.rows for cell in row if cell.best]
    assert best == [("this model", "0.2000"), ("this model", "0.1000")]
    assert table.rows[2][3].text == ""


def test_what_is_no_number_is_a_dash_or_no_column():
    nan = float("nan")
    table = metric_grid([{"system": "a", "auc": 0.5, "gauc": nan}, {"system": "b", "auc": nan}])
    assert [cell.text for cell in table.heads] == ["system", "AUC"]
    assert [row[1].text for row in table.rows] == ["0.5000", NOTHING]


def test_an_output_that_cannot_be_written(make, facts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        build_report(influences=[make([1.0])], facts=facts, out=tmp_path / "file" / "r.html")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        build_report(influences=[make([1.0])], facts=facts, out=tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fields_are_shown_as_the_events_they_add_up_to(make, facts):
    whole = make([0.75, 2.0])
    players = [Player(0, "item"), Player(0, "gap"), Player(1, "item"), Player(1, "gap")]
    fields = replace(whole, values=np.array([0.5, 0.25, 3.0, -1.0]), players=players)
    assert render_report(influences=[fields], facts=facts) == render_report(
        influences=[whole], facts=facts
    )


def test_a_block_is_one_number_and_a_list_has_its_largest_change(make, facts):
    change = SlateChange(2, 3, 0, ("Fargo",), ("Heat",))
    titles = ["A1", "A2", "B"]
    record = make([0.5, 0.5, 0.2], titles=titles, block=(0, 1), target="slate", slate_change=change)
    page = render_report(influences=[record], facts=facts)
    assert "2 older events together: +1.00 NDCG. They were scored as one" in page
    assert "<li>leaves: Fargo</li>" in page
    assert "<li>enters: Heat</li>" in page
    assert "A1 <small>" not in page  # not among the strongest
    assert "B <small>" in page


def test_a_broken_table_is_refused(make, facts):
    table = to_arrow([make([1.0, 2.0])])
    with pytest.raises(DataError, match="player"):
        render_report(influences=table.slice(1), facts=facts)
    with pytest.raises(SchemaError, match="'prediction'"):
        render_report(influences=table.drop_columns(["prediction"]), facts=facts)


def test_reports_need_neither_torch_nor_pandas():
    code = (
        "import sys, llm_influence.report.page, llm_influence.report.tables, "
        "llm_influence.influence.table, llm_influence.influence.text; "
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
