"""The Open Bandit Pipeline's side of results/bandit/a6_peers.py, run by the Python of an environment of its own.

obp 0.5.7 asks for Python below 3.10 and for old versions of what it needs, but runs with new ones. It is only compared
with, and is no dependency:

    python -m venv OBP && OBP/bin/pip install torch numpy pandas scikit-learn scipy pyyaml tqdm matplotlib seaborn
    OBP/bin/pip install --no-deps --ignore-requires-python obp==0.5.7

    OBP/bin/python benchmarks/obp_peer.py GIVEN.npz FOUND.json

What is given: `action`, `reward`, `pscore` [rows], `action_dist`, `reward_model` [rows, actions], and `numbers`, the
settings of the estimators as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
from obp import ope


def estimators(numbers: dict[str, float]) -> dict[str, ope.BaseOffPolicyEstimator]:
    """OBP's estimators by the names that Peira has for them."""
    return {
        "ipw": ope.InverseProbabilityWeighting(),
        "ipw, clipped": ope.InverseProbabilityWeighting(lambda_=numbers["clip"]),
        "snipw": ope.SelfNormalizedInverseProbabilityWeighting(),
        "dm": ope.DirectMethod(),
        "dr": ope.DoublyRobust(),
        "dr, clipped": ope.DoublyRobust(lambda_=numbers["clip"]),
        "sndr": ope.SelfNormalizedDoublyRobust(),
        "switch_dr": ope.SwitchDoublyRobust(lambda_=numbers["threshold"]),
        "dros": ope.DoublyRobustWithShrinkage(lambda_=numbers["shrinkage"]),
        "sg_ipw": ope.SubGaussianInverseProbabilityWeighting(lambda_=numbers["strength"]),
        "sg_dr": ope.SubGaussianDoublyRobust(lambda_=numbers["strength"]),
    }


def main() -> None:
    given = np.load(sys.argv[1])
    log = {
        "reward": given["reward"],
        "action": given["action"],
        "pscore": given["pscore"],
        "position": np.zeros(len(given["reward"]), int),
        "action_dist": given["action_dist"][:, :, None],
        "estimated_rewards_by_reg_model": given["reward_model"][:, :, None],
    }
    kinds = estimators(json.loads(str(given["numbers"])))
    interval = kinds["snipw"].estimate_interval(**log, n_bootstrap_samples=1_000, random_state=0)
    found = {
        "values": {name: float(kind.estimate_policy_value(**log)) for name, kind in kinds.items()},
        "snipw_interval": [interval["95.0% CI (lower)"], interval["95.0% CI (upper)"]],
        "versions": {name: importlib.metadata.version(name) for name in ("obp", "numpy")},
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
