"""Bars and heat maps of influences."""

import re

import numpy as np
import pytest

from llm_influence.influence.matrix import InfluenceMatrix

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def test_bars_stand_in_order_with_the_oldest_on_top(make):
    influence = make([0.5, -1.0, 2.0], titles=["Ca$h & $tuff", "B", "C"])
    axis = influence.plot()
    axis.figure.canvas.draw()
    assert [bar.get_width() for bar in axis.patches] == [0.5, -1.0, 2.0]
    assert axis.yaxis_inverted()
    assert axis.get_yticklabels()[0].get_text() == "Ca$h & $tuff · rate 4"
    colors = {bar.get_facecolor() for bar in axis.patches}
    assert len(colors) == 2
    assert influence.plot(axis) is axis


def test_a_matrix_is_drawn_with_its_empty_corner_and_one_scale(make):
    events = make([0.0, 0.0], titles=["Ca$h", "B $x$"]).events
    scores = np.array([[0.5, -2.0], [np.nan, 0.25]])
    matrix = InfluenceMatrix("7", events, scores, np.zeros(2), "item", "ab", ["A", "B"], "drop", 2)
    axis = matrix.plot()
    axis.figure.canvas.draw()
    (image,) = axis.images
    np.testing.assert_array_equal(image.get_array().mask, np.isnan(scores))
    assert image.get_clim() == (-2, 2)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["A", "B"]
    assert axis.get_yticklabels()[0].get_text() == "Ca$h · rate 4"
    assert matrix.plot(axis) is axis
    frame = matrix.to_pandas()
    assert frame.loc["Ca$h", "B"] == -2
    assert (frame.index.name, frame.columns.name) == ("event", "prediction")


def test_html_is_escaped_and_in_proportion(make):
    page = make([0.5, -1.0], titles=["<script>alert(1)</script>", 'a "quoted" title'])._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r"<div style=\"width:([\d.]+)%", page) == ["50.0", "100.0"]
    assert "http" not in page


def test_html_of_zero_scores_and_shares(make):
    assert "width:0.0%" in make([0.0, 0.0])._repr_html_()
    assert "not promised" in make([0.4, 0.6], units="share")._repr_html_()
