"""An oracle on disk: `oracle.json` says what it is and for which schema; the model's own files lie beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from peira.experience.decisions import FeatureSchema
from peira.policies.oracles.calibration import calibration_from_json

if TYPE_CHECKING:
    from peira.policies.oracles.base import Oracle

DESCRIPTION = "oracle.json"


def save_oracle(oracle: Oracle, folder: str | Path) -> None:
    """Write the oracle to `folder`, which is made if need be: all of its state, so that it can go on learning.

    Tensors as safetensors, trees as LightGBM's text, the rest as JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / oracle.state_file
    digest = None
    if oracle.trained:
        oracle.write(state)
        digest = hashlib.sha256(state.read_bytes()).hexdigest()
    about = {
        "oracle": oracle.name,
        "schema": oracle.schema.to_json(),
        "schema_hash": oracle.schema.hash,
        "settings": oracle.settings(),
        "state_sha256": digest,
        "calibration": None if oracle.calibration is None else oracle.calibration.to_json(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n")


def load_oracle(folder: str | Path, schema: FeatureSchema | None = None) -> Oracle:
    """The oracle that `save_oracle` wrote; it predicts the same bits.

    With `schema` it must be the one that the oracle was made for. Raises ValueError where the hashes of the two
    differ (naming both), where the folder holds no oracle, and where its files are damaged.
    """
    from peira.policies.oracles.make import make_oracle

    folder = Path(folder)
    description = folder / DESCRIPTION
    if not description.exists():
        raise ValueError(f"oracle: {folder} holds no {DESCRIPTION}; name a folder that save_oracle wrote")
    try:
        about = json.loads(description.read_text())
        name, settings, digest = about["oracle"], dict(about["settings"]), about["state_sha256"]
        text, recorded, calibration = about["schema"], about["schema_hash"], about["calibration"]
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"oracle: {description} is damaged ({fault}); save the oracle again") from fault
    own = FeatureSchema.from_json(text)
    if own.hash != recorded:
        raise ValueError(
            f"oracle: the schema in {description} has hash {own.hash}, but {recorded} was recorded; it was changed"
        )
    if schema is not None:
        check_schema(own, schema)
    oracle = make_oracle(name, own, settings.pop("seed", 0), **settings)
    if digest is not None:
        state = folder / oracle.state_file
        # Checked before it is parsed: LightGBM takes some damaged texts for a model.
        found = hashlib.sha256(state.read_bytes()).hexdigest() if state.exists() else "no file"
        if found != digest:
            raise ValueError(
                f"oracle: {state} is damaged (SHA-256 {found[:16]}, {digest[:16]} was recorded); save the oracle again"
            )
        oracle.read(state)
    oracle.calibration = None if calibration is None else calibration_from_json(calibration)
    return oracle


def check_schema(own: FeatureSchema, other: FeatureSchema) -> None:
    """ValueError, naming both hashes and the first field that differs, unless an oracle's schema is the other one."""
    if own.hash == other.hash:
        return
    differs = next(
        field
        for field in ("actions", "numbers", "categories", "action_numbers")
        if json.dumps(getattr(own, field)) != json.dumps(getattr(other, field))
    )
    raise ValueError(
        f"schema: the oracle was made for {own.hash}, but the choices are of {other.hash} (their {differs} differ); "
        "fit an oracle on the new schema"
    )
