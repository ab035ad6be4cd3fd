"""Small logs of decisions with everything that one can have, for the tests of their records and formats."""

import numpy as np
import pyarrow as pa

from peira.experience.decision_records import DecisionRecord, decision_table, uniform_number
from peira.experience.decisions import PADDING, Choices, FeatureSchema, LoggedDecisions

SCHEMA = FeatureSchema(
    actions=("none", "token", "3ds", "token+3ds", "retry:1 %"),
    numbers=("amount", "shopper.age"),
    # In no alphabetical order: that of columns is the schema's own.
    categories={"issuer": ("beta", "alpha"), "card.kind": ("debit", "credit|corporate", "a=b")},
    action_numbers=("fee", "latency"),
)


def logged(
    count: int,
    seed: int = 0,
    schema: FeatureSchema = SCHEMA,
    *,
    with_pmf: bool = True,
    weighted: bool = False,
    ordered: bool = False,
) -> LoggedDecisions:
    """Decisions drawn from a pmf that varies, over 2 or more actions in any order (`ordered`: that of their codes)."""
    rng = np.random.default_rng(seed)
    actions = len(schema.actions)
    order = rng.random((count, actions)).argsort(1)
    eligible_count = rng.integers(2, actions + 1, count)
    action = np.where(np.arange(actions) < eligible_count[:, None], order, PADDING).astype(np.int32)
    if ordered:
        action = np.sort(np.where(action < 0, actions, action), axis=1).astype(np.int32)
        action[action == actions] = PADDING
    eligible = action >= 0
    pmf = np.where(eligible, rng.gamma(0.7, size=action.shape) + 0.02, 0.0)
    pmf /= pmf.sum(1, keepdims=True)
    column = np.minimum((np.cumsum(pmf, 1) <= rng.random(count)[:, None]).sum(1), eligible_count - 1)
    feature = rng.normal(size=(actions, len(schema.action_numbers))).astype(np.float32)[np.maximum(action, 0)]
    feature[~eligible] = 0
    parent = np.where(rng.random(count) < 0.2, rng.integers(0, count, count), np.arange(count))
    _, first, cluster = np.unique(
        np.minimum(parent, np.arange(count)), return_index=True, return_inverse=True
    )
    rank = np.argsort(np.argsort(first))
    return LoggedDecisions(
        choices=Choices(
            number=rng.normal(size=(count, len(schema.numbers))).astype(np.float32),
            category=np.stack(
                [rng.integers(0, len(known) + 1, count) for known in schema.categories.values()], axis=1
            ).astype(np.int32),
            action=action,
            feature=feature,
        ),
        column=column,
        propensity=pmf[np.arange(count), column],
        reward=rng.integers(0, 2, count).astype(np.float64),
        pmf=pmf if with_pmf else None,
        generation=rng.integers(0, 4, count),
        time=np.round(1_700_000_000 + np.sort(rng.random(count)) * 1000, 6),
        uniform=rng.random(count) < 0.1,
        cluster=rank[cluster],
        weight=rng.choice([1.0, 4.0], count) if weighted else None,
    )


def assert_same(one: LoggedDecisions, other: LoggedDecisions, but: tuple[str, ...] = ()) -> None:
    """Every number the same, to the last bit, but for what a format has no place for."""
    for name in ("number", "category", "action", "feature"):
        if name not in but:
            np.testing.assert_array_equal(getattr(one.choices, name), getattr(other.choices, name), name)
            assert getattr(one.choices, name).dtype == getattr(other.choices, name).dtype, name
    for name in (
        "column",
        "propensity",
        "reward",
        "pmf",
        "generation",
        "time",
        "uniform",
        "cluster",
        "weight",
    ):
        if name not in but:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def record(number: int = 0, **changes) -> DecisionRecord:
    """Decision `number` over three actions, as a service would write it."""
    given = {
        "event_id": f"e{number}",
        "timestamp": float(number),
        "policy_id": "p",
        "policy_version": 3,
        "config_hash": "abc",
        "context": {"amount": 1.5, "issuer": "alpha"},
        "actions": ("none", "token", "3ds"),
        "pmf": (0.5, 0.3, 0.2),
        "chosen_index": 1,
        "propensity": 0.3,
        "seed": 7,
        "explore_kind": "squarecb",
        "explore_parameters": {"gamma": 2000.0, "floor": 0.01},
    }
    return DecisionRecord(**{**given, **changes})


def drawn(count: int, seed: int = 7, **changes) -> list[DecisionRecord]:
    """Records whose action was really drawn by their seed."""
    records = []
    for number in range(count):
        pmf = (0.5, 0.3, 0.2)
        chosen = int(np.searchsorted(np.cumsum(pmf), uniform_number(seed, f"e{number}"), side="right"))
        records.append(record(number, seed=seed, chosen_index=chosen, propensity=pmf[chosen], **changes))
    return records


def served(count: int) -> pa.Table:
    return decision_table(drawn(count))
