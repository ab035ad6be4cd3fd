"""What successive policies do to their own training data: columns of a generation, and a verdict over several.

A policy that improves logs fewer failures and fewer of the actions that it thinks inferior, so that the next one is
trained on worse data; with a short memory quality oscillates. Vangara and Egg 2024 (arXiv 2412.00569) report it;
``adyen.md`` 2.5 and 2.6 name the diagnostics and the countermeasures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

from peira.experience.decisions import FeatureSchema, LoggedDecisions
from peira.policies.oracles.calibration import brier, expected_calibration_error, log_loss

FEW_GENERATIONS = 5
"""Fewer values than this show neither a trend nor an oscillation."""


def log_columns(rows: LoggedDecisions, schema: FeatureSchema, segment: str | None = None) -> dict[str, float]:
    """What a generation's own log looks like.

    positive_rate and minority_share of the rewards (a reward above ½ is positive); least_action_share, over actions
    that were ever eligible; least_cell_rows, the fewest rows of a (segment, eligible action), where `segment` names a
    category; effective_actions, the mean of exp(H(p)) over rows; propensity_mean, _median and _min of the chosen
    actions; inverse_propensity_mean beside mean_actions (the two agree where propensities are right); uniform_rows.
    """
    choices, positive = rows.choices, float((rows.reward > 0.5).mean())
    columns = {
        "positive_rate": positive,
        "minority_share": min(positive, 1 - positive),
        "propensity_mean": float(rows.propensity.mean()),
        "propensity_median": float(np.median(rows.propensity)),
        "propensity_min": float(rows.propensity.min()),
        "inverse_propensity_mean": float((1 / rows.propensity).mean()),
        "mean_actions": float(choices.count.mean()),
        "uniform_rows": int(rows.uniform.sum()),
    }
    actions = len(schema.actions)
    offered = np.zeros(actions, bool)
    offered[choices.action[choices.eligible]] = True
    share = np.bincount(rows.action, minlength=actions) / len(rows)
    columns["least_action_share"] = float(share[offered].min())
    if rows.pmf is not None:
        columns["effective_actions"] = float(np.exp(special.entr(rows.pmf).sum(1)).mean())
    if segment is not None:
        code = choices.category[:, list(schema.categories).index(segment)]
        columns["least_cell_rows"] = _least_cell(code, rows, actions)
    return columns


def _least_cell(code: Int[np.ndarray, " rows"], rows: LoggedDecisions, actions: int) -> int:
    cells = (int(code.max()) + 1) * actions
    eligible = rows.choices.eligible
    offered = np.zeros(cells, bool)
    offered[(code[:, None] * actions + rows.choices.action)[eligible]] = True
    return int(np.bincount(code * actions + rows.action, minlength=cells)[offered].min())


def model_columns(rows: LoggedDecisions, scores: Float[np.ndarray, "rows columns"]) -> dict[str, float]:
    """How well the model that chose predicted what came of it, on all rows and on the uniform slice alone.

    brier_…, log_loss_… and calibration_error_… of the chosen actions (…_logged, …_uniform: absent without such rows);
    greedy_predicted and greedy_realised, the mean prediction and reward of the rows where the model's best action was
    taken. `scores` are f̂, NaN where not eligible.
    """
    predicted = scores[np.arange(len(rows)), rows.column]
    columns = {}
    for name, inside in (("logged", np.ones(len(rows), bool)), ("uniform", rows.uniform)):
        if not inside.any():
            continue
        f, r = predicted[inside], rows.reward[inside]
        columns[f"brier_{name}"] = float(brier(f, r))
        columns[f"log_loss_{name}"] = float(log_loss(f, r))
        columns[f"calibration_error_{name}"] = float(expected_calibration_error(f, r))
    greedy = np.nanargmax(scores, 1) == rows.column
    if greedy.any():
        columns["greedy_predicted"] = float(predicted[greedy].mean())
        columns["greedy_realised"] = float(rows.reward[greedy].mean())
    return columns


def flip_rate(before: Float[np.ndarray, "rows columns"], after: Float[np.ndarray, "rows columns"]) -> float:
    """Share of contexts whose best action changes from one model's scores to the next one's."""
    return float((np.nanargmax(before, 1) != np.nanargmax(after, 1)).mean())


@dataclass(frozen=True)
class Oscillation:
    """How a value moves from generation to generation.

    deviation        standard deviation of the values, n − 1
    autocorrelation  of successive values about their mean, lag 1; below 0 where good and bad ones take turns
    trend            least-squares slope a generation
    trend_interval   its 95 % interval (Student's t), which assumes independent deviations from the line
    """

    deviation: float
    autocorrelation: float
    trend: float
    trend_interval: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float] | Float[np.ndarray, " generations"]) -> Oscillation:
        """Of at least 3 values; ValueError for fewer."""
        value = np.asarray(values, np.float64)
        if len(value) < 3:
            raise ValueError(f"an oscillation needs at least 3 generations, got {len(value)}")
        centred = value - value.mean()
        square = float(centred @ centred)
        line = stats.linregress(np.arange(len(value)), value)
        half = float(stats.t.ppf(0.975, len(value) - 2)) * float(line.stderr)
        return cls(
            deviation=float(value.std(ddof=1)),
            autocorrelation=float(centred[1:] @ centred[:-1]) / square if square > 0 else 0.0,
            trend=float(line.slope),
            trend_interval=(float(line.slope) - half, float(line.slope) + half),
        )


def verdict(history: Sequence[Mapping[str, float]]) -> list[str]:
    """In plain words, what a run of generations shows, and what helps; the worst first.

    A row holds what the columns above name, and `value`, the policy's mean reward on fresh decisions or its off-policy
    estimate; absent columns are not spoken of.
    """
    value = [row["value"] for row in history if "value" in row]
    if len(value) < FEW_GENERATIONS:
        return [f"{len(value)} generations are too few to see a trend or an oscillation"]
    moves = Oscillation.of(value)
    said = []
    low, high = moves.trend_interval
    if high < 0:
        said.append(
            f"each generation is worse than the one before, by {-moves.trend:.2g} on average: the log that a policy "
            "writes no longer teaches its successor what the alternatives are worth. Train on more periods (window), "
            "explore more where actions are nearly equal (a lower γ or a greater explore_mass), keep a uniform slice."
        )
    elif low > 0:
        said.append(f"generations still improve, by {moves.trend:.2g} each")
    flips = [row["flip_rate"] for row in history if "flip_rate" in row]
    if moves.autocorrelation < -0.3 and flips and np.mean(flips) > 0.1:
        said.append(
            f"good and bad generations take turns (lag-1 autocorrelation {moves.autocorrelation:.2f}, "
            f"{np.mean(flips):.0%} of best actions change from one model to the next): a longer window and the gate "
            "break the cycle"
        )
    elif flips and np.mean(flips) > 0.2:
        said.append(
            f"{np.mean(flips):.0%} of best actions change from one model to the next while the value varies by "
            f"{moves.deviation:.2g}: models differ by noise, more rows a model (window) would settle them"
        )
    if (gap := _gap(history, "greedy_predicted", "greedy_realised")) is not None and gap > 0.01:
        said.append(
            f"models promise {gap:.1%} more than their best actions earn: they are optimistic about what they choose; "
            "calibrate on the uniform slice"
        )
    if (
        gap := _gap(history, "calibration_error_uniform", "calibration_error_logged")
    ) is not None and gap > 0.02:
        said.append(
            "models are well calibrated on what they choose and worse on uniform traffic: their gaps, which decide "
            "how much is explored, are off by more than the log shows"
        )
    starved = [row["least_action_share"] for row in history[-FEW_GENERATIONS:] if "least_action_share" in row]
    if starved and max(starved) < 0.002:
        said.append(
            "some action gets less than 0.2 % of the rows: nothing can be learned of it; give it a floor"
        )
    return said or [
        f"no trend ({low:+.2g} to {high:+.2g} a generation), values vary by {moves.deviation:.2g}: stable"
    ]


def _gap(history: Sequence[Mapping[str, float]], more: str, less: str) -> float | None:
    gaps = [row[more] - row[less] for row in history if more in row and less in row]
    return float(np.mean(gaps)) if gaps else None
