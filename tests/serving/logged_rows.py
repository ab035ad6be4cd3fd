"""Decisions and outcomes as the service would log them."""

from __future__ import annotations

from peira.serving.database import ArrivedOutcome, StoredDecision


def decision(event_id: str, timestamp: float = 1000.0, **changed) -> StoredDecision:
    """An even draw between a and b."""
    fields = {
        "event_id": event_id,
        "timestamp": timestamp,
        "policy_id": "p",
        "policy_version": 1,
        "config_hash": "0" * 16,
        "context": '{"amount":1.5,"country":"NL"}',
        "actions": '["a","b"]',
        "action_features": None,
        "pmf": "[0.5,0.5]",
        "chosen_index": 1,
        "propensity": 0.5,
        "seed": 7,
        "explore_kind": "squarecb",
        "explore_parameters": "{}",
        "override": 0,
        "slice": "normal",
        "parent_event_id": None,
        "attempt": 1,
    }
    return StoredDecision(**{**fields, **changed})


def outcome(event_id: str, reward: float | None = 1.0, received: float = 1001.0, **changed) -> ArrivedOutcome:
    fields = {
        "event_id": event_id,
        "key": f"{reward}",
        "reward": reward,
        "outcome_time": received,
        "source": "caller",
        "received": received,
    }
    return ArrivedOutcome(**{**fields, **changed})
