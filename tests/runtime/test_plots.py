"""Plots are well-formed SVG whose marks lie where the data says, inside the plot area."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from snl_runtime.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, CurvePlot, PlotArea, nice_ticks, svg_file

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.13, 0.94), (1e-6, 3e-6), (-5, 1234), (2.0, 2.0), (0.0, 0.0), (1e6, 1e6 + 1)])
def test_ticks_enclose_the_values_at_equal_round_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_corners_of_the_data_are_the_corners_of_the_plot_area():
    area = PlotArea(2.0, 4.0, 0.0, 10.0)
    assert (area.x(2.0), area.y(0.0)) == (LEFT, HEIGHT - BOTTOM)
    assert (area.x(4.0), area.y(10.0)) == (WIDTH - RIGHT, TOP)
    assert (area.x(3.0), area.y(5.0)) == ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)


def test_file_holds_every_plot_with_its_title_legend_and_points():
    plots = [
        CurvePlot("cost < limit", "frames", "ms", [Curve("a & b", [1, 4, 8], [10.0, 30.0, 60.0]), Curve("c", [1, 8], [5.0, 5.0])]),
        CurvePlot("one point", "cameras", "ms", [Curve("d", [2], [0.0])]),
    ]
    root = ElementTree.fromstring(svg_file(plots))
    groups = [group for group in root if group.get("class") == "plot"]
    assert len(groups) == 2
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"cost < limit", "one point", "a & b", "c", "d", "frames", "cameras"} <= set(texts)
    assert [len(line.get("points").split()) for line in root.iter(f"{SVG}polyline")] == [3, 2, 1]
    assert [element.text for element in groups[0].iter(f"{SVG}title")] == ["1: 10", "4: 30", "8: 60", "1: 5", "8: 5"]
    x_of_4 = LEFT + 4 / 8 * (WIDTH - LEFT - RIGHT)  # ticks go from 0 to 8
    assert groups[0].findall(f".//{SVG}circle")[1].get("cx") == f"{x_of_4:.1f}"


def test_plots_of_a_file_do_not_cover_each_other():
    plot = CurvePlot("t", "x", "y", [Curve("a", [0, 1], [0.0, 1.0])])
    root = ElementTree.fromstring(svg_file([plot, plot, plot]))
    tops = [float(group.get("transform").removeprefix("translate(0 ").removesuffix(")")) for group in root if group.get("class") == "plot"]
    assert np.diff(tops).min() > HEIGHT
    assert float(root.get("height")) >= tops[-1] + HEIGHT


def test_many_points_are_a_line_without_dots():
    values = np.linspace(0, 1, 200)
    root = ElementTree.fromstring(svg_file([CurvePlot("t", "x", "y", [Curve("a", values, values)])]))
    assert root.findall(f".//{SVG}circle") == []


@pytest.mark.parametrize(("x", "ticks"), [([1, 2], ["1", "2"]), ([0.5, 1.0], ["0.5", "0.6", "0.7", "0.8", "0.9", "1"])])
def test_counts_have_no_ticks_between_whole_numbers(x, ticks):
    root = ElementTree.fromstring(svg_file([CurvePlot("t", "x", "y", [Curve("a", x, [0.0, 1.0])])]))
    middle = [element.text for element in root.iter(f"{SVG}text") if element.get("text-anchor") == "middle" and element.text not in ("x", "y")]
    assert middle == ticks
