"""Payments: which combination of interventions gets this one authorised? A simulator whose truth is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from peira.environments.decision_world import Rounds, rounds_of
from peira.experience.decisions import PADDING, Choices, FeatureSchema

ISSUERS = 40
CATEGORIES = 4
INTERVENTIONS = ("token", "exemption", "format")
"""Bit k of an action's code: a network token in place of the card number, an exemption from strong customer
authentication, another formatting of the message."""
PAIRS = ((0, 1), (0, 2), (1, 2))

BITS = (np.arange(2 ** len(INTERVENTIONS))[:, None] >> np.arange(len(INTERVENTIONS))) & 1  # [8, 3]
BITS.setflags(write=False)
ACTIONS = tuple("+".join(name for name, bit in zip(INTERVENTIONS, row, strict=True) if bit) for row in BITS)
ACTIONS = ("none", *ACTIONS[1:])

MAIN_EFFECT = np.array([0.10, 0.05, -0.05])
ISSUER_SHARE = (np.arange(ISSUERS) + 1.0) ** -0.7
ISSUER_SHARE /= ISSUER_SHARE.sum()
LARGEST_EXEMPT_AMOUNT = 1.2


@dataclass(frozen=True)
class Drift:
    """From one draw of the coefficients to a second one, linearly, and back again where there are seasons.

      start   the round at which the transition begins
      length  rounds that it takes; 0 is a jump
      season  rounds from the beginning of a transition to the beginning of the one back; None: it stays

    Raises ValueError for a negative length and for a season that is shorter than its transition.
    """

    start: int
    length: int
    season: int | None = None

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"drift.length: expected at least 0 rounds, got {self.length}")
        if self.season is not None and not self.season >= max(self.length, 1):
            raise ValueError(
                f"drift.season: expected at least 1 and the {self.length} rounds of a transition, got {self.season}"
            )

    def weight(self, rounds: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """The second draw's share of the coefficients, 0 to 1."""
        since = rounds - self.start
        if self.season is None:
            return np.where(since < 0, 0.0, self._risen(since))
        phase = since % (2 * self.season)
        back = phase >= self.season
        risen = self._risen(np.where(back, phase - self.season, phase))
        return np.where(since < 0, 0.0, np.where(back, 1.0 - risen, risen))

    def _risen(self, since: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        return np.minimum(since / self.length, 1.0) if self.length else np.ones(len(since))


@dataclass(frozen=True)
class Outage:
    """An issuer declines more from round `start` for `length` rounds: its β is lower by `drop`.

    Raises ValueError for an issuer that is not there.
    """

    issuer: int
    start: int
    length: int
    drop: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.issuer < ISSUERS:
            raise ValueError(f"outage.issuer: expected 0 to {ISSUERS - 1}, got {self.issuer}")


@dataclass(frozen=True)
class NovelAction:
    """An action, by name, that is eligible only from round `start` on. ValueError for "none" or an unknown name."""

    action: str
    start: int

    def __post_init__(self) -> None:
        if self.action not in ACTIONS[1:]:
            raise ValueError(f"novel.action: expected one of {', '.join(ACTIONS[1:])}, got {self.action!r}")


@dataclass(frozen=True)
class PaymentConfig:
    """Which payment world; every default is the plain one. ValueError names a field that is out of range."""

    delay_success: float = 10.0  # mean rounds until a success is known, before rounding up
    delay_failure: float = 100.0  # the same for a failure; an outcome with both at 0 is known at once
    drift: Drift | None = None
    outages: tuple[Outage, ...] = ()
    novel: NovelAction | None = None
    retry_after: float | None = None  # mean rounds until a failed payment comes back; None: none does

    def __post_init__(self) -> None:
        for name in ("delay_success", "delay_failure"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}: expected at least 0 rounds, got {getattr(self, name)}")
        if self.retry_after is not None and not 0 < self.retry_after < np.inf:
            raise ValueError(f"retry_after: expected more than 0 rounds, got {self.retry_after}")


DAY = 12_000  # rounds; with a training a day, the period in which later generations are seen to get worse
WORLDS = {
    "payment": PaymentConfig(),
    # From the end of the fifth day on, within three days, to other coefficients.
    "payment-drift": PaymentConfig(drift=Drift(start=5 * DAY, length=3 * DAY)),
    # There and back again, every four days, within half a day.
    "payment-season": PaymentConfig(drift=Drift(start=4 * DAY, length=DAY // 2, season=4 * DAY)),
    # The largest issuer, for the sixth day.
    "payment-outage": PaymentConfig(outages=(Outage(issuer=0, start=5 * DAY, length=DAY),)),
    # A hundred times slower: most failures of a day become known on a later one.
    "payment-delay": PaymentConfig(delay_success=1_000.0, delay_failure=10_000.0),
    "payment-retries": PaymentConfig(retry_after=500.0),
    # From the seventh day on, the combination of the two interventions with positive main effects.
    "payment-novel": PaymentConfig(novel=NovelAction("token+exemption", start=6 * DAY)),
}


class PaymentWorld:
    """A payment is authorised (reward 1) or not (0), with a probability that the combination of interventions moves.

    Issuer i ∈ 0..39, P(i) ∝ (i + 1)^−0.7; amount z ~ N(0, 1); category c ∈ 0..3, uniform. With b ∈ {0, 1}³ the
    interventions (`INTERVENTIONS`, bit k of the action's code),

        logit f*(x, b) = β_i − 0.35 max(z, 0) − 0.15 c + Σ_k b_k (e_ik + h_k + d_ik z) + Σ_{k<l} b_k b_l s_{i,kl},

    β ~ N(2, 0.7), e ~ N(0, 0.35), h = (0.10, 0.05, −0.05), d ~ N(0, 0.15), s ~ N(0, 0.2), all standard deviations,
    drawn once from `seed`. Bit 0 needs an issuer that takes tokens (probability 0.6), bit 1 one that takes exemptions
    (0.7) and z ≤ 1.2, so that 2, 4 or 8 actions are eligible; "none" always is. They stand on the left of the row
    in the order of their codes; there are always 8 columns.

    Outcomes are known ceil(Exp(scale)) rounds after the decision, scale = 10 + (1 − r)(100 − 10) with the reward r: a
    success has mean 10, a failure 100, and what is known of the latest rounds holds too many successes. (A delay by f*
    in place of r would say nothing of the outcome once context and action are known.)

    Extensions, by `config`:
      drift    the coefficients (β, e, d, s) move to a second draw, for good or with the seasons
      outages  an issuer's β is lower for a while
      novel    one combination is eligible only from some round on
      retries  a payment that fails whichever eligible action were taken comes back once, as a later context of the same
               call to `contexts`; only the number "attempt" (1 or 2) tells them apart, and `clusters` gives both one
               number. Who comes back does not depend on what was chosen, so nothing need be remembered: an attempt
               succeeds iff u < f*, where u is uniform on [0, 1) by a hash of payment, attempt and seed, and comes back
               iff u ≥ max_a f*. Hence `outcomes` draws only delays from its generator in this world. A return that
               would fall behind the last row of the call does not happen.

    `schema`: numbers "amount" (and "attempt" with retries), categories "issuer" and "category", the three bits as
    numbers of an action. Source: a simulator for the setting of Vangara and Egg, arXiv 2412.00569, whose data are not
    public.
    """

    def __init__(self, seed: int, config: PaymentConfig = PaymentConfig()) -> None:
        self.config = config
        self.schema = FeatureSchema(
            actions=ACTIONS,
            numbers=("amount",) if config.retry_after is None else ("amount", "attempt"),
            categories={
                "issuer": tuple(f"issuer-{issuer:02d}" for issuer in range(ISSUERS)),
                "category": tuple(f"category-{category}" for category in range(CATEGORIES)),
            },
            action_numbers=INTERVENTIONS,
        )
        generator = np.random.default_rng(seed)
        self._level, self._slope = _coefficients(generator)
        self._takes_token = generator.random(ISSUERS) < 0.6
        self._takes_exemption = generator.random(ISSUERS) < 0.7
        self._later_level, self._later_slope = _coefficients(generator)
        self._salt = generator.integers(2**63, dtype=np.uint64)

    def contexts(self, rows: int, generator: np.random.Generator, at: int) -> Choices:
        """`rows` payments from round `at` on."""
        issuer = generator.choice(ISSUERS, rows, p=ISSUER_SHARE)
        amount = generator.standard_normal(rows, dtype=np.float32)
        category = generator.integers(CATEGORIES, size=rows)
        attempt = np.ones(rows, np.float32)
        if self.config.retry_after is not None:
            lag = np.ceil(generator.exponential(self.config.retry_after, rows)).astype(np.int64)
            payment, attempt = self._attempts(issuer, amount, category, lag, at)
            issuer, amount, category = issuer[payment], amount[payment], category[payment]
        return self._choices(issuer, amount, category, attempt, np.arange(at, at + rows))

    def expected_reward(self, choices: Choices, at: Rounds) -> Float[np.ndarray, "rows columns"]:
        """f*(x, a), exactly; NaN where padded. ValueError for an issuer or category that this world does not have."""
        if len(choices) and choices.category.min() < 1:
            raise ValueError(
                "choices: an issuer or category is none of the schema's; give the payments of this world"
            )
        issuer, category = choices.category[:, 0] - 1, choices.category[:, 1] - 1
        rounds = rounds_of(at, len(choices))
        amount = choices.number[:, :1].astype(np.float64)
        common = -0.35 * np.maximum(amount[:, 0], 0.0) - 0.15 * category
        for outage in self.config.outages:
            out = (rounds >= outage.start) & (rounds < outage.start + outage.length)
            common -= outage.drop * (out & (issuer == outage.issuer))
        # One place in the flattened tables for each cell; a padded cell reads the one before and is set to NaN.
        cell = np.maximum(issuer[:, None] * len(ACTIONS) + choices.action, 0)
        logit = self._level.ravel()[cell] + self._slope.ravel()[cell] * amount
        if self.config.drift is not None:
            share = self.config.drift.weight(rounds)[:, None]
            later = self._later_level.ravel()[cell] + self._later_slope.ravel()[cell] * amount
            logit += share * (later - logit)
        logit += common[:, None]
        expected = expit(logit)
        expected[choices.action == PADDING] = np.nan
        return expected

    def outcomes(
        self, choices: Choices, column: Int[np.ndarray, " rows"], generator: np.random.Generator, at: Rounds
    ) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
        """`(reward, delay)`: Bernoulli rewards of the chosen columns, delays in rounds.

        Raises ValueError where a padded column is chosen.
        """
        # Only the chosen column is worked out.
        chosen = Choices(
            choices.number,
            choices.category,
            np.take_along_axis(choices.action, column[:, None], 1),
            np.take_along_axis(choices.feature, column[:, None, None], 1),
        )
        probability = self.expected_reward(chosen, at)[:, 0]
        if np.isnan(probability).any():
            row = int(np.argmax(np.isnan(probability)))
            raise ValueError(f"column: {column[row]} of row {row} is padding; choose an eligible column")
        if self.config.retry_after is None:
            fate = generator.random(len(choices))
        else:
            fate = self._fate(self._payment(choices), choices.number[:, 1])
        reward = (fate < probability).astype(np.float64)
        fast, slow = self.config.delay_success, self.config.delay_failure
        delay = np.ceil(generator.exponential(fast + (1.0 - reward) * (slow - fast)))
        return reward, delay.astype(np.int64)

    def clusters(self, choices: Choices, at: Rounds) -> Int[np.ndarray, " rows"]:
        """The payment of every row: its round, or with retries a number made of amount, issuer and category.

        Two payments that agree in all three to the last bit count as one: 0.01 pairs are to be expected in 12,000 rows.
        """
        if self.config.retry_after is None:
            return rounds_of(at, len(choices))
        return self._payment(choices).astype(np.int64)

    @cached_property
    def _eligibility(self) -> tuple[np.ndarray, np.ndarray]:
        """Actions [8, 8] and their bits [8, 8, 3] by pattern: token + 2 · exemption + 4 · (no novel one yet)."""
        action = np.full((8, len(ACTIONS)), PADDING, np.int32)
        feature = np.zeros((8, len(ACTIONS), len(INTERVENTIONS)), np.float32)
        for pattern in range(8):
            allowed = (BITS[:, 0] <= (pattern & 1)) & (BITS[:, 1] <= (pattern >> 1 & 1))
            if self.config.novel is not None and pattern & 4:
                allowed[ACTIONS.index(self.config.novel.action)] = False
            codes = np.flatnonzero(allowed)
            action[pattern, : len(codes)] = codes
            feature[pattern, : len(codes)] = BITS[codes]
        return action, feature

    def _choices(
        self,
        issuer: np.ndarray,
        amount: np.ndarray,
        category: np.ndarray,
        attempt: np.ndarray,
        rounds: np.ndarray,
    ) -> Choices:
        exempt = self._takes_exemption[issuer] & (amount <= LARGEST_EXEMPT_AMOUNT)
        pattern = self._takes_token[issuer] + 2 * exempt
        if self.config.novel is not None:
            pattern += 4 * (rounds < self.config.novel.start)
        action, feature = self._eligibility
        number = (amount,) if self.config.retry_after is None else (amount, attempt)
        return Choices(
            number=np.stack(number, axis=1),
            category=np.stack([issuer, category], axis=1).astype(np.int32) + np.int32(1),
            action=action[pattern],
            feature=feature[pattern],
        )

    def _attempts(
        self, issuer: np.ndarray, amount: np.ndarray, category: np.ndarray, lag: np.ndarray, at: int
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """`(payment, attempt)` of every row when those that fail whatever is done come back `lag` payments later."""
        rows = len(issuer)
        first = np.ones(rows, np.float32)
        place = np.arange(rows)
        returns: Bool[np.ndarray, " rows"] | None = None
        while True:
            choices = self._choices(issuer, amount, category, first, at + place)
            ceiling = np.nanmax(self.expected_reward(choices, at + place), axis=1)
            before, returns = returns, self._fate(self._payment(choices), first) >= ceiling
            # A payment's round is moved by the returns before it, and in a world that changes, whether it returns
            # depends on its round. Each pass settles at least one payment more, from the front.
            if before is not None and (before == returns).all():
                break
            payment = np.concatenate([np.arange(rows), np.flatnonzero(returns)])
            when = np.concatenate([np.arange(rows), (np.arange(rows) + lag)[returns]])
            order = np.argsort(when, kind="stable")
            place = np.argsort(order, kind="stable")[:rows]
        order = order[:rows]
        return payment[order], np.where(order < rows, 1, 2).astype(np.float32)

    @staticmethod
    def _payment(choices: Choices) -> np.ndarray:
        """[rows] uint64: amount, issuer and category in 41 bits."""
        bits = np.ascontiguousarray(choices.number[:, 0], np.float32).view(np.uint32).astype(np.uint64)
        issuer, category = choices.category.T.astype(np.uint64)
        return (bits << np.uint64(9)) | (issuer << np.uint64(3)) | category

    def _fate(self, payment: np.ndarray, attempt: np.ndarray) -> Float[np.ndarray, " rows"]:
        """Uniform numbers in [0, 1), the same for the same payment and attempt: splitmix64's finaliser, twice."""
        mixed = _mix(payment + self._salt)
        return (_mix(mixed + attempt.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def _coefficients(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`(level, slope)` [issuers, actions]: what of the logit does not depend on the amount, and what does per unit."""
    beta = generator.normal(2.0, 0.7, ISSUERS)
    effect = generator.normal(0.0, 0.35, (ISSUERS, len(INTERVENTIONS)))
    slope = generator.normal(0.0, 0.15, (ISSUERS, len(INTERVENTIONS)))
    joint = generator.normal(0.0, 0.2, (ISSUERS, len(PAIRS)))
    both = np.stack([BITS[:, one] * BITS[:, other] for one, other in PAIRS], axis=1)
    return beta[:, None] + (effect + MAIN_EFFECT) @ BITS.T + joint @ both.T, slope @ BITS.T


def _mix(word: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64, a bijection whose output bits each depend on every input bit."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
