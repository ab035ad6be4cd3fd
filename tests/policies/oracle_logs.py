"""Logged decisions for the tests of reward oracles."""

import numpy as np

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions

NAMES = ("ridge", "logistic", "lightgbm", "forest", "mlp", "ensemble")
SMALL = {
    "lightgbm": {"trees": 20, "least_rows": 20},
    "forest": {"trees": 20},
    "mlp": {"epochs": 3, "hidden": 16},
    "ensemble": {"epochs": 3, "hidden": 16, "members": 3},
}

SCHEMA = FeatureSchema(
    actions=("none", "token", "exemption", "both"),
    numbers=("amount", "age"),
    categories={"issuer": ("a", "b", "c"), "card": ("debit", "credit")},
    action_numbers=("is_token", "is_exempt"),
)
BITS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)


def draw_choices(rows, seed=0, schema=SCHEMA, varying=False):
    """Contexts with 2 to all of the actions eligible, in random order; features of actions fixed or varying by row."""
    generator = np.random.default_rng(seed)
    actions, features = len(schema.actions), len(schema.action_numbers)
    number = generator.normal(3.0, 2.0, (rows, len(schema.numbers))).astype(np.float32)
    values = [len(known) + 1 for known in schema.categories.values()]
    category = (
        np.stack([generator.integers(0, many, rows) for many in values], 1) if values else np.zeros((rows, 0))
    )
    action = generator.permuted(np.tile(np.arange(actions), (rows, 1)), axis=1)
    count = generator.integers(2, actions + 1, rows)
    action[np.arange(actions) >= count[:, None]] = -1
    if varying or features != 2:
        feature = generator.normal(1.0, 1.0, (rows, actions, features)).astype(np.float32)
    else:
        feature = BITS[action]
    feature[action < 0] = 0
    return Choices(number, category.astype(np.int32), action.astype(np.int32), feature)


def true_reward(choices):
    """Success of every (row, action): issuers, the amount, and what the first action feature does by issuer."""
    issuer = choices.category[:, 0] if choices.category.shape[1] else np.zeros(len(choices), int)
    amount = choices.number[:, 0] - 3 if choices.number.shape[1] else np.zeros(len(choices))
    logit = 0.8 + 0.3 * issuer - 0.2 * amount
    bit = choices.feature[..., 0] if choices.feature.shape[2] else (choices.action % 2)
    probability = 1 / (1 + np.exp(-(logit[:, None] + bit * (issuer - 1.5)[:, None])))
    return np.where(choices.eligible, probability, np.nan)


def draw_log(rows, seed=0, schema=SCHEMA, varying=False, choices=None):
    """A log of the uniform policy on `true_reward`."""
    choices = draw_choices(rows, seed, schema, varying) if choices is None else choices
    generator = np.random.default_rng(seed + 1)
    column = (generator.random(rows) * choices.count).astype(np.int64)
    reward = generator.random(rows) < true_reward(choices)[np.arange(rows), column]
    return LoggedDecisions(
        choices=choices,
        column=column,
        propensity=1.0 / choices.count,
        reward=reward.astype(np.float64),
        pmf=choices.eligible / choices.count[:, None],
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=np.float64),
        uniform=np.ones(rows, bool),
        cluster=np.arange(rows),
    )


def greedy_regret(oracle, choices):
    """Mean of max f* − f* of the action that the oracle puts first."""
    true = true_reward(choices)
    taken = np.nanargmax(oracle.predict(choices), axis=1)
    return float(np.mean(np.nanmax(true, 1) - true[np.arange(len(choices)), taken]))
