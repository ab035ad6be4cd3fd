"""Peira: learn policies from experience of any origin."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`peira.evaluate`, imported when it is asked for: it takes seconds, which other commands should not."""
    if name == "evaluate":
        from peira.evaluation.off_policy.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module 'peira' has no attribute {name!r}")
