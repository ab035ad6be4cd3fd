"""The picture over λ shows what was measured, and no more."""

from peira.runs.guidance_plot import over_strengths

ROWS = [
    {"strength": strength, "log_pi": -6.0 + strength, "std_z": 3.0, "dynamics_error": 1e-4 * (1 + strength)}
    for strength in (0.0, 0.1, 1.0, 10.0)
]


def test_a_panel_a_measure_with_every_decade_of_strength_named():
    figure = over_strengths({"recipe": ROWS}, {"log_pi": -5.0, "dynamics_error": 1e-12})
    assert [axes.get_title("left") for axes in figure.axes] == [
        "log π(a | s), nats a step",
        "std of (a − μ)/σ",
        "one-step dynamics error",
    ]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1", "1", "10"]
    likelihood, spread, error = figure.axes
    assert likelihood.lines[0].get_ydata().tolist() == [-6.0, -5.9, -5.0, 4.0]
    # Real windows are a line where they were measured, and near enough to be drawn.
    assert [len(axes.lines) for axes in (likelihood, spread, error)] == [2, 1, 1]
    assert error.get_yscale() == "log" and likelihood.get_yscale() == "linear"


def test_an_error_of_nothing_is_drawn_without_decades():
    rows = [{**row, "dynamics_error": 0.0} for row in ROWS]
    (error,) = [
        axes for axes in over_strengths({"exact": rows}, {}).axes if "error" in axes.get_title("left")
    ]
    assert error.get_yscale() == "linear"
