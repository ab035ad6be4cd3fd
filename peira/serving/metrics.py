"""What Prometheus reads of the service."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)

from peira.serving.database import ArrivedOutcome, Recorded, StoredDecision

LATENCY = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)
PROPENSITY = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
disable_created_metrics()  # A second series for each, which says when the service started.

BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service, since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("peira_requests", "Requests answered.", ["path", "status"], **own)
        self.latency = Histogram(
            "peira_request_seconds",
            "From the last byte of a request's head to its answer.",
            ["path"],
            buckets=LATENCY,
            **own,
        )
        self.decisions = Counter("peira_decisions", "Decisions recorded, by action.", ["action"], **own)
        self.slice = Counter(
            "peira_decisions_slice", "Decisions recorded, by slice of traffic.", ["slice"], **own
        )
        self.overrides = Counter("peira_overrides", "Decisions that a caller's rule made.", **own)
        self.propensity = Histogram(
            "peira_propensity", "Probability of the action that was chosen.", buckets=PROPENSITY, **own
        )
        self.outcomes = Counter(
            "peira_outcomes", "Outcomes that came, by what became of them.", ["status"], **own
        )
        self.reward = Summary(
            "peira_reward", "Reward of outcomes in time, by version of the policy.", ["policy_version"], **own
        )
        self.mean_reward = Gauge("peira_reward_mean", "Mean reward of all outcomes in time.", **own)
        self.uniform_share = Gauge(
            "peira_uniform_slice_share", "Share of decisions in the uniform slice.", **own
        )
        self.policy_version = Gauge("peira_policy_version", "Version of the policy that decides.", **own)
        self.swaps = Counter("peira_policy_swaps", "Candidates that asked to take over.", ["result"], **own)
        self.batch = Histogram(
            "peira_write_batch", "Decisions and outcomes in one transaction.", buckets=BATCH, **own
        )
        self.compacted = Counter("peira_compacted_decisions", "Decisions moved into the store.", **own)
        self.faults = Counter("peira_faults", "What failed inside the service.", ["part"], **own)
        self._decided = self._uniform = self._rewarded = 0
        self._reward = 0.0

    def recorded(
        self, decisions: Sequence[StoredDecision], outcomes: Sequence[ArrivedOutcome], of: Recorded
    ) -> None:
        """Count one transaction: what was handed to it, and what it made of that."""
        self.batch.observe(len(decisions) + len(outcomes))
        for own, logged in zip(decisions, of.decisions, strict=True):
            if own != logged:  # It was recorded earlier.
                continue
            self._decided += 1
            self._uniform += own.slice == "uniform"
            self.decisions.labels(own.action).inc()
            self.slice.labels(own.slice).inc()
            if own.override:
                self.overrides.inc()
            else:
                self.propensity.observe(own.propensity)
        for outcome, verdict in zip(outcomes, of.outcomes, strict=True):
            self.outcomes.labels(verdict.status).inc()
            if verdict.status == "stored" and outcome.reward is not None:
                self.reward.labels(str(verdict.policy_version)).observe(outcome.reward)
                self._rewarded += 1
                self._reward += outcome.reward

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.latency.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        if self._rewarded:
            self.mean_reward.set(self._reward / self._rewarded)
        if self._decided:
            self.uniform_share.set(self._uniform / self._decided)
        return generate_latest(self.registry)
