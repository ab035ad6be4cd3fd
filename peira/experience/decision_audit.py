"""Whether a log's propensities can be true: what 1/p must average to if each row was drawn as it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from peira.experience.decisions import FeatureSchema, LoggedDecisions

STANDARD_ERRORS = 4.0
"""How far a mean may be off; 4 standard errors are passed by chance once in 16,000 tests."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Balance:
    """A mean over rows beside what it must be, and the difference in standard errors."""

    name: str
    found: float
    expected: float
    z: float

    @property
    def sound(self) -> bool:
        return abs(self.z) <= STANDARD_ERRORS

    def __str__(self) -> str:
        return f"{self.found:.5g}, expected {self.expected:.5g} ({self.z:+.1f} standard errors)"


@dataclass(frozen=True)
class PropensityAudit:
    """What a log's propensities average to, and what they must.

    inverse_propensity  mean of 1/p beside the mean of K(x)
    actions             for each action, mean of 1{chosen}/p beside the share of rows in which it is eligible
    ranks               where the pmf was logged: how often the j-th most probable action was chosen, beside the mean
                        of its probability
    unsupported         eligible actions of all rows that had probability 0; they count as not eligible
    """

    rows: int
    inverse_propensity: Balance
    actions: tuple[Balance, ...]
    ranks: tuple[Balance, ...]
    unsupported: int

    @property
    def faults(self) -> tuple[Balance, ...]:
        """The means that are further than `STANDARD_ERRORS` from what they must be."""
        return tuple(of for of in (self.inverse_propensity, *self.actions, *self.ranks) if not of.sound)

    @property
    def sound(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        if self.sound:
            return f"propensities: as they must be in {self.rows} rows (1/p {self.inverse_propensity})"
        return (
            "propensities: "
            + "; ".join(f"{of.name} {of}" for of in self.faults)
            + ("; was the pmf logged before floors or overrides, or in another order than the actions?")
        )


def propensity_audit(rows: LoggedDecisions, schema: FeatureSchema) -> PropensityAudit:
    """Test that each action was drawn with the probability that is logged for it.

    Over p(a|x), E[1/p | x] = K(x) and E[1{a}/p | x] = 1 for each eligible action, whatever the policy, as long as every
    eligible action has a chance. Where the pmf is logged, the standard errors are those that it implies (the variance
    of 1{a}/p is 1/p − 1), and the ranks of the probabilities are tested as well, which finds a pmf that the draw did
    not follow where 1/p varies too much to tell. Without it they are those of the sample, and full support is assumed.
    Rows count alike, also where a share of them was logged: what is tested is the draw. Raises ValueError for no rows.

    Source: mechanism test 4 of section 8 of the specification of payment bandits.
    """
    count = len(rows)
    if not count:
        raise ValueError("log: holds no decision; give at least one")
    eligible = rows.choices.eligible
    supported = eligible if rows.pmf is None else eligible & (rows.pmf > 0)
    number, inverse = len(schema.actions), 1.0 / rows.propensity
    code = np.where(supported, rows.choices.action, number)
    support = supported.sum(1)
    share = np.bincount(code.ravel(), minlength=number + 1)[:-1] / count
    found = np.bincount(rows.action, inverse, number) / count
    ranks: tuple[Balance, ...] = ()
    if rows.pmf is None:
        variance = (inverse - support).var()
        squared = np.bincount(rows.action, inverse**2, number) / count
        variances = squared - 2 * found + share - (found - share) ** 2
    else:
        inverses = np.divide(1.0, rows.pmf, out=np.zeros_like(rows.pmf), where=supported)
        variance = np.mean(inverses.sum(1) - support**2)
        variances = np.bincount(code.ravel(), (inverses - supported).ravel(), number + 1)[:-1] / count
        ranks = _ranks(rows)
    return PropensityAudit(
        rows=count,
        inverse_propensity=_balance("1/p", inverse.mean(), support.mean(), variance, count),
        actions=tuple(
            _balance(f"action {name!r}", found[a], share[a], variances[a], count)
            for a, name in enumerate(schema.actions)
        ),
        ranks=ranks,
        unsupported=int((eligible & ~supported).sum()),
    )


def _ranks(rows: LoggedDecisions) -> tuple[Balance, ...]:
    """How often the most probable action was chosen, the second, …; ties keep the order of the columns."""
    count = len(rows)
    order = np.argsort(-rows.pmf, axis=1, kind="stable")
    pmf = np.take_along_axis(rows.pmf, order, axis=1)
    found = (order == rows.column[:, None]).mean(0)
    spread = np.mean(pmf * (1 - pmf), 0)
    return tuple(
        _balance(f"rank {place + 1}", found[place], pmf[:, place].mean(), spread[place], count)
        for place in range(pmf.shape[1])
    )


def _balance(name: str, found: float, expected: float, variance: float, rows: int) -> Balance:
    difference, error = float(found - expected), float(np.sqrt(max(variance, 0.0) / rows))
    if abs(difference) <= _ROUNDING * max(1.0, abs(expected)):
        z = 0.0
    else:
        z = difference / error if error > 0 else float(np.copysign(np.inf, difference))
    return Balance(name, float(found), float(expected), z)
