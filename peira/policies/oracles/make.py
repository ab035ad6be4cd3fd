"""Oracles by name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from peira.experience.decisions import FeatureSchema
from peira.policies.oracles.base import Oracle

# Modules by text: LightGBM is imported where it is asked for, and only there.
ORACLES = {
    "ridge": "linear.RidgeOracle",
    "logistic": "linear.LogisticOracle",
    "lightgbm": "boosting.LightGBMOracle",
    "forest": "boosting.ForestOracle",
    "mlp": "neural.MLPOracle",
    "ensemble": "neural.EnsembleOracle",
}


def make_oracle(name: str, schema: FeatureSchema, seed: int = 0, **settings: Any) -> Oracle:
    """A new oracle: ridge, logistic, lightgbm, forest, mlp or ensemble. The seed goes to those that draw anything.

    Raises ValueError for an unknown name, for a setting that the oracle does not have, and where LightGBM is asked for
    and not installed.
    """
    if name not in ORACLES:
        raise ValueError(f"oracle: {name!r} is not known; choose from {', '.join(ORACLES)}")
    module, of = ORACLES[name].split(".")
    try:
        kind = getattr(importlib.import_module(f"peira.policies.oracles.{module}"), of)
    except ModuleNotFoundError as fault:
        raise ValueError(
            f"oracle: {name} needs {fault.name}, which is not installed here: pip install 'peira[decisions]'"
        ) from fault
    known = set(inspect.signature(kind).parameters) - {"schema"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"oracle: {name} has no setting {unknown[0]!r}; it has {', '.join(sorted(known - {'seed'}))}"
        )
    return kind(schema, **({"seed": seed} if "seed" in known else {}), **settings)
