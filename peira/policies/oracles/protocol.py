"""What a reward oracle is: a supervised model of the mean reward of every eligible action."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.policies.oracles.calibration import Method


@runtime_checkable
class RewardOracle(Protocol):
    """Mean reward f̂(x, a) from logged decisions by plain supervised learning.

    `fit` starts anew from `rows`; `predict` gives the mean reward of every eligible action in [0, 1], NaN elsewhere,
    and 0.5 everywhere before the first row; `calibrate` maps the predictions onto what rows not learned from show.
    """

    schema: FeatureSchema

    def fit(
        self, rows: LoggedDecisions, weights: Float[np.ndarray, " rows"] | None = None
    ) -> RewardOracle: ...

    def predict(self, choices: Choices) -> Float[np.ndarray, "rows columns"]: ...

    def calibrate(self, rows: LoggedDecisions, method: Method) -> RewardOracle: ...

    def save(self, folder: Path) -> None: ...
