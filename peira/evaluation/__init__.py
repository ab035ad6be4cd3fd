"""What a policy is worth without running it, and whether to deploy it."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`peira.evaluation.gate`, imported when it is asked for."""
    if name == "gate":
        from peira.evaluation.off_policy.deployment import gate

        return gate
    raise AttributeError(f"module 'peira.evaluation' has no attribute {name!r}")
