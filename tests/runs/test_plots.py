"""Plots from fabricated runs: what is drawn, what is left out, and that nobody sees half a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from peira.runs import plots

PNG = b"\x89PNG"


def write_metrics(folder: Path, rows: list[dict]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def result_of(arms: dict[str, float], *, ledger: bool = True) -> dict:
    """A comparison whose arms end at the given returns, in the shape of `compare.json`."""
    steps = [0, 500, 1000]
    return {
        "env": "Hopper-v5",
        "unit": "steps",
        "arms": {
            name: {
                "seeds": [0, 1],
                "curve": {
                    "steps": steps,
                    "iqm": [0, end / 2, end],
                    "low": [0, 0, end - 1],
                    "high": [1, end, end],
                },
                "ledger_curves": {"staleness": {"steps": steps, "iqm": [0, 1, 1]}} if ledger else {},
            }
            for name, end in arms.items()
        },
    }


def test_series_leaves_out_what_was_not_measured():
    metrics = [
        {"real_steps": 10, "evaluation_return": 1.0},
        {"real_steps": 20},
        {"real_steps": 30, "evaluation_return": None},
        {"real_steps": 40, "evaluation_return": float("nan")},
        {"real_steps": 50, "evaluation_return": 3.0},
    ]
    steps, values = plots.series(metrics, "evaluation_return")
    np.testing.assert_array_equal(steps, [10, 50])
    np.testing.assert_array_equal(values, [1, 3])
    assert all(len(array) == 0 for array in plots.series(metrics, "staleness"))


def test_series_keeps_the_last_value_where_steps_repeat():
    metrics = [{"real_steps": step, "score": value} for step, value in ((10, 1.0), (20, 2.0), (10, 5.0))]
    steps, values = plots.series(metrics, "score")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [5, 2])


def test_a_torn_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"real_steps": 1}\n{"real_st')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: expected one JSON object, got"):
        plots.read_metrics(tmp_path)


def test_learning_curve_of_one_run(tmp_path):
    rows = [{"real_steps": 100 * row, "evaluation_return": row, "staleness": 0} for row in range(1, 4)]
    path = plots.learning_curve(write_metrics(tmp_path, rows))
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(PNG)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]


def test_learning_curve_needs_something_to_draw(tmp_path):
    with pytest.raises(ValueError, match="expected one of evaluation_return, sampling_error, staleness"):
        plots.learning_curve(write_metrics(tmp_path, [{"real_steps": 1, "loss": 0.5}]))


def test_comparison_draws_a_labelled_line_and_a_band_for_each_arm():
    figure = plots.comparison(result_of({"props": 30.0, "ppo": 10.0}))
    returns, staleness = figure.axes
    assert [line.get_label() for line in returns.get_lines()] == ["props", "ppo"]
    assert len(returns.collections) == 2
    assert {text.get_text() for text in returns.texts} == {"props", "ppo"}
    assert staleness.get_title(loc="left") == "staleness (policy versions)"


def test_comparison_without_ledger_curves_has_one_panel():
    assert len(plots.comparison(result_of({"ppo": 1.0}, ledger=False)).axes) == 1


def test_lines_of_eight_arms_differ_in_colour_or_dash():
    figure = plots.comparison(result_of({f"arm{index}": float(index) for index in range(8)}))
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 8


def test_labels_of_lines_that_end_together_are_pushed_apart():
    figure = plots.comparison(result_of({"a": 30.0, "b": 30.0, "c": 30.0, "d": 0.0}))
    panel = figure.axes[0]
    heights = sorted(text.xy[1] for text in panel.texts)
    assert min(np.diff(heights)) > 0.02 * np.ptp(panel.get_ylim())
    # The one that ends elsewhere stays at its line.
    assert heights[0] == 0.0
