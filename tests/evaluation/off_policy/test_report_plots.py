"""What each plot draws of a report, in artists that can be counted."""

import copy
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from ope_reports import REFUSED, estimate, full_report, small_report

from peira.evaluation.off_policy import plots, plotted


def lines(figure: Figure, gid: str) -> list:
    """All lines of a figure that stand for something."""
    return [line for panel in figure.axes for line in panel.get_lines() if line.get_gid() == gid]


def points(figure: Figure, gid: str) -> int:
    return sum(len(line.get_xdata()) for line in lines(figure, gid))


def intervals(figure: Figure) -> np.ndarray:
    """Both ends of all intervals [intervals, 2]."""
    found = [
        collection.get_segments()
        for panel in figure.axes
        for collection in panel.collections
        if isinstance(collection, LineCollection) and collection.get_gid() == "interval"
    ]
    return np.array(
        [[segment[:, 0].min(), segment[:, 0].max()] for segments in found for segment in segments]
    )


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def two_estimators() -> dict:
    report = small_report(
        first={"wdr": estimate(1.4, 0.1), "dm": estimate(1.6, 0.05)},
        second={"wdr": estimate(None), "dm": estimate(0.8, 0.05)},
    )
    report["candidates"]["first"]["truth"] = 1.45
    return report


def test_estimates_are_drawn_with_intervals_behaviour_truth_and_refusals():
    figure = plots.estimates(two_estimators())
    assert len(figure.axes) == 1
    panel = figure.axes[0]
    assert points(figure, "estimate") == 3
    np.testing.assert_allclose(intervals(figure), [[1.2, 1.6], [1.5, 1.7], [0.7, 0.9]])
    (behaviour,) = lines(figure, "behaviour policy")
    assert list(behaviour.get_xdata()) == [1.0, 1.0]
    (stars,) = lines(figure, "true value")
    assert stars.get_marker() == "*"
    assert list(stars.get_xdata()) == [1.45]
    (refused,) = lines(figure, "refused")
    assert refused.get_marker() == "x"
    # It sits in the row of its candidate, at the left edge.
    assert round(float(refused.get_ydata()[0])) == 1
    assert refused.get_xdata()[0] < 0.7
    assert [label.get_text() for label in panel.get_yticklabels()] == ["first", "second"]
    assert legend(figure) == ["wdr", "dm", "behaviour policy", "true value", "refused"]
    assert "expected return" in panel.get_xlabel()
    assert "95" in figure.get_suptitle()


def test_an_estimator_has_one_colour_in_every_figure():
    report = full_report(5, 6)
    colours = [
        {line.get_label(): to_hex(line.get_color()) for line in draw(report).legends[0].get_lines()}
        for draw in (plots.estimates, plots.sharpe_ratio, plots.portfolio)
    ]
    for estimator in report["settings"]["estimators"]:
        assert len({of[estimator] for of in colours}) == 1
    assert len({colours[0][estimator] for estimator in report["settings"]["estimators"]}) == 6


@pytest.mark.parametrize(("estimators", "panels"), [(1, 1), (4, 1), (5, 5), (12, 12)])
def test_many_estimators_get_a_panel_each(estimators, panels):
    report = full_report(3, estimators)
    figure = plots.estimates(report)
    assert len(figure.axes) == panels
    if panels > 1:
        assert [panel.get_title(loc="left") for panel in figure.axes] == report["settings"]["estimators"]
    given = [
        of["value"] is not None
        for candidate in report["candidates"].values()
        for of in candidate["estimates"].values()
    ]
    beyond = points(figure, "beyond the axis <") + points(figure, "beyond the axis >")
    assert points(figure, "refused") == given.count(False)
    assert given.count(True) - beyond <= points(figure, "estimate") <= given.count(True)
    assert len(intervals(figure)) == given.count(True)


def test_forty_candidates_have_a_readable_row_each():
    figure = plots.estimates(full_report(40, 12, refusals=False))
    panel = figure.axes[0]
    assert len(panel.get_yticklabels()) == 40
    figure.draw_without_rendering()
    heights = sorted(label.get_window_extent().y0 for label in panel.get_yticklabels() if label.get_text())
    text = panel.get_yticklabels()[0].get_window_extent().height
    assert min(np.diff(heights)) > 0.9 * text


def test_a_wild_interval_becomes_an_arrow_and_does_not_flatten_the_others():
    values = {f"c{index}": {"tis": estimate(1 + index / 10, 0.1)} for index in range(8)}
    values["wild"] = {"tis": estimate(1e6, 1e5)}
    values["wide"] = {"tis": estimate(1.2, 1e4)}
    figure = plots.estimates(small_report(**values))
    low, high = figure.axes[0].get_xlim()
    assert high - low < 10
    assert points(figure, "estimate") == 9
    assert points(figure, "beyond the axis >") == 2
    assert points(figure, "beyond the axis <") == 1
    assert "goes beyond the axis" in legend(figure)


def test_a_one_sided_interval_reaches_the_edge():
    report = small_report(a={"wdr": estimate(1.4, 0.1)})
    report["candidates"]["a"]["estimates"]["wdr"]["interval"] = [1.2, None]
    figure = plots.estimates(report)
    ((low, high),) = intervals(figure)
    assert low == 1.2
    assert high == figure.axes[0].get_xlim()[1]
    assert points(figure, "beyond the axis >") == 1


def test_sharpe_ratio_is_drawn_with_its_parts():
    report = full_report(6, 3, refusals=False)
    figure = plots.sharpe_ratio(report)
    assert [panel.get_title(loc="left").split(":")[0].split(" =")[0] for panel in figure.axes] == [
        "SharpeRatio@k",
        "gain",
        "spread",
    ]
    for panel, key in zip(figure.axes, ("sharpe", "sharpe_numerator", "std"), strict=True):
        assert len(panel.get_lines()) == 3
        for line in panel.get_lines():
            drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for k, of in report["portfolio"][line.get_label()].items():
                expected = math.nan if of[key] is None else of[key]
                assert drawn[int(k)] == pytest.approx(expected, nan_ok=True)


def test_the_portfolio_panel_shows_kth_best_worst_mean_and_spread():
    report = full_report(6, 3, refusals=False)
    figure = plots.portfolio(report)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    for word in ("k-th", "best", "worst", "mean", "spread", "regret", "safety"):
        assert any(word in title for title in titles)
    kth = next(panel for panel in figure.axes if "k-th" in panel.get_title(loc="left"))
    line = next(line for line in kth.get_lines() if line.get_label() == "dr" or line.get_label() == "dm")
    names = report["ranking"][line.get_label()]
    assert list(line.get_ydata()) == [report["candidates"][name]["truth"] for name in names]
    assert len(lines(figure, "baseline")) == 4


def test_portfolios_of_estimates_show_the_estimate_of_the_kth():
    report = full_report(4, 2, truth=False, refusals=False)
    rows = [row for row in plotted.portfolios(report) if row["estimator"] == "dm"]
    names = report["ranking"]["dm"]
    assert [row["candidate"] for row in rows] == names
    assert [row["kth"] for row in rows] == [
        report["candidates"][name]["estimates"]["dm"]["value"] for name in names
    ]
    assert "by estimated values" in plots.portfolio(report).get_suptitle()
    assert not any("safety" in panel.get_title(loc="left") for panel in plots.portfolio(report).axes)


def test_return_distributions_show_every_candidate_and_the_behaviour_policy():
    report = full_report(9, 3)
    figure = plots.return_distributions(report)
    assert len(lines(figure, "candidate")) == 9
    (behaviour,) = lines(figure, "behaviour policy")
    assert list(behaviour.get_ydata()) == report["log"]["behaviour"]["returns"]["probability"]
    for line in lines(figure, "candidate"):
        assert line.get_drawstyle() == "steps-post"
        assert (np.diff(line.get_ydata()) >= 0).all()
    # Six in colour, the others together.
    assert len(legend(figure)) == 1 + plots.HIGHLIGHTED + 1
    assert legend(figure)[-1] == "3 more"


def test_weight_histograms_hold_every_episode():
    report = full_report(7, 2)
    figure = plots.weight_histograms(report)
    assert len(figure.axes) == 7
    for panel in figure.axes:
        (bars,) = panel.patches
        assert bars.get_data().values.sum() == report["log"]["episodes"]
    shown = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert all("largest: " in text and "none: " in text for text in shown)


def test_effective_sample_size_is_drawn_over_steps():
    report = full_report(3, 2)
    figure = plots.effective_sample_size(report)
    name = next(iter(report["candidates"]))
    drawn = [list(line.get_ydata()) for line in lines(figure, "candidate")]
    assert report["candidates"][name]["weights"]["effective_sample_size_by_step"] in drawn
    (whole,) = lines(figure, "episodes in the log")
    assert set(whole.get_ydata()) == {3000}
    (least,) = lines(figure, "1 % of the log")
    assert set(least.get_ydata()) == {30}
    assert figure.axes[0].get_yscale() == "log"


def test_truth_against_estimates_marks_the_first_k():
    report = full_report(6, 3, refusals=False)
    figure = plots.true_against_estimated(report, k=2)
    assert len(figure.axes) == 3
    assert points(figure, "chosen") == 3 * 2
    assert points(figure, "not chosen") == 3 * 4
    for panel, estimator in zip(figure.axes, report["settings"]["estimators"], strict=True):
        (region,) = [patch for patch in panel.patches if patch.get_gid() == "top k"]
        second = report["candidates"][report["ranking"][estimator][1]]["estimates"][estimator]["value"]
        left = region.get_x()
        assert left == pytest.approx(max(second, panel.get_xlim()[0]))
    assert "the first 2" in figure.get_suptitle()


def test_a_plot_of_what_the_report_lacks_is_refused_by_name():
    report = small_report(a={"wdr": estimate(1.4, 0.1)})
    for draw, lacks in (
        (plots.sharpe_ratio, "portfolios"),
        (plots.portfolio, "portfolios"),
        (plots.true_against_estimated, "candidates with known true values"),
        (plots.return_distributions, "return distributions"),
        (plots.weight_histograms, "weights"),
        (plots.effective_sample_size, "weights"),
    ):
        with pytest.raises(ValueError, match=lacks):
            draw(report)
    assert list(plots.drawable(report)) == ["estimates"]


@pytest.mark.parametrize("count", [1, 9])
def test_every_plot_can_be_drawn_and_saved_alone(count, tmp_path):
    report = full_report(count, 3)
    for name, plot in plots.drawable(report).items():
        figure = plot.draw(report)
        assert isinstance(figure, Figure)
        plots.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # One candidate is no portfolio.
    left_out = {"sharpe_ratio", "portfolio"} if count == 1 else set()
    assert {path.stem for path in tmp_path.iterdir()} == set(plots.PLOTS) - left_out


def test_nulls_are_left_out_and_break_nothing():
    report = full_report(4, 3)
    for candidate in report["candidates"].values():
        for of in candidate["estimates"].values():
            of["standard_error"] = of["interval"] = of["effective_sample_size"] = None
    first, second, third, _ = report["candidates"].values()
    first["distribution"] = second["weights"] = third["truth"] = None
    for of in first["estimates"].values():
        of |= {"value": None, "refused": REFUSED}
    first["weights"]["largest_share"] = None
    first["weights"]["effective_sample_size_by_step"] = [None] * 20
    report["log"]["behaviour"] |= {"value": None, "standard_error": None, "interval": None}
    for portfolio in report["portfolio"].values():
        portfolio["2"] = dict.fromkeys(portfolio["2"])
    report["metrics"].popitem()
    for plot in plots.drawable(report).values():
        plot.draw(report).draw_without_rendering()


def test_all_candidates_refused_still_makes_a_figure():
    report = small_report(a={"wdr": estimate(None)}, b={"wdr": estimate(None)})
    figure = plots.estimates(report)
    assert points(figure, "refused") == 2
    assert points(figure, "estimate") == 0
    plots.sharpe_ratio(report).draw_without_rendering()


def test_names_are_drawn_as_they_are():
    names = ("$x_1$", "_hidden", "a" * 80, "new\nline")
    report = small_report(**{name: {"wdr": estimate(1.4, 0.1)} for name in names})
    figure = plots.estimates(report)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels][:2] == ["$x_1$", "_hidden"]
    assert not any(label.get_parse_math() for label in labels)
    assert all(len(label.get_text()) <= 28 for label in labels)


def test_drawing_leaves_no_trace_in_matplotlibs_settings_or_the_report():
    before = dict(matplotlib.rcParams)
    report = full_report(3, 2)
    untouched = copy.deepcopy(report)
    for plot in plots.PLOTS.values():
        plot.draw(report)
    assert dict(matplotlib.rcParams) == before
    assert report == untouched


def test_the_bulk_of_an_axis_holds_what_it_must():
    assert plots.bulk([], keep=[]) == (-1.0, 1.0)
    assert plots.bulk([None, 2.0], keep=[None]) == (1.9, 2.1)
    low, high = plots.bulk([1.0, 1.1, 1.2, 1.3, 1e9, math.inf], keep=[0.0, 5.0])
    assert (low, high) == (-0.25, 5.25)
    # Not farther from what must be seen than that spans.
    assert plots.bulk([1.0] * 9 + [1.9], keep=[0.0, 1.0]).high == pytest.approx(1.9 + 0.05 * 1.9)


def test_no_two_estimators_look_the_same():
    looks = [
        (plots.COLOURS[i % len(plots.COLOURS)], plots.MARKERS[i % len(plots.MARKERS)]) for i in range(12)
    ]
    assert len(set(looks)) == 12
    assert not {"<", ">", "x", "*"} & set(plots.MARKERS)
