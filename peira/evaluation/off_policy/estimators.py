"""The estimators by name: what each is built from, and its terms for one block of episodes of one candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from peira.evaluation.off_policy import bandit, marginal, sequential
from peira.evaluation.off_policy.diagnostics import Basis
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block, weights

Padded = Float[np.ndarray, "episodes steps"]


@dataclass(frozen=True)
class Piece:
    """What estimators read of one block of episodes for one candidate; what was not fitted is None.

    block        rewards and log ratios
    q, v         the value model at the logged pairs and at the states
    state_ratio  time-indexed ratio ρ_t(s) of numbered states
    pair_ratio   discounted ratio ρ(s, a) of the rows, of the whole horizon
    dice_ratio   the same by DICE; `mwl_ratio` by minimax weight learning
    final_v      the value at what followed the last step, 0 where nothing did or values count to there
    embedding_ratio   π(e|x)/π_b(e|x) of the embedding of the logged action, one step
    cluster_ratio     the same of its cluster, with `effect`, `effect_v`: the conjunct-effect model
    """

    block: Block
    gamma: float
    terminated: Bool[np.ndarray, " episodes"]
    q: Padded | None = None
    v: Padded | None = None
    final_v: Float[np.ndarray, " episodes"] | None = None
    state_ratio: Padded | None = None
    pair_ratio: Padded | None = None
    dice_ratio: Padded | None = None
    mwl_ratio: Padded | None = None
    embedding_ratio: Padded | None = None
    cluster_ratio: Padded | None = None
    effect: Padded | None = None
    effect_v: Padded | None = None

    @property
    def ratio(self) -> Float[np.ndarray, " episodes"]:
        """π/π_b of the only action of one-step episodes."""
        return weights(self.block.log_ratio)[:, 0]


@dataclass(frozen=True)
class Estimator:
    """An estimator: what it rests on, the parts of a `Piece` it reads, its terms, and its parameter if it has one.

    With a parameter (`grid`: its values, from least biased to least variance) `terms` takes that as a second argument;
    the value is chosen by SLOPE unless it is given.
    """

    basis: Basis
    reads: tuple[str, ...]
    terms: Callable[..., Terms]
    one_step: bool | None = None
    """True: for one-step episodes only; False: for longer ones only."""
    grid: str | None = None

    @property
    def weighs_episodes(self) -> bool:
        """Whether its weights are products over an episode, and suffer where those do."""
        other = any(part.endswith("ratio") for part in self.reads)
        return self.basis != Basis.MODEL and not other

    @property
    def weighs_groups(self) -> bool:
        """Whether its weights are those of groups of actions: an action never tried may share its group with others."""
        return any(part in ("embedding_ratio", "cluster_ratio") for part in self.reads)


def _marginal(
    of_states: Callable[..., Terms], of_pairs: Callable[..., Terms], *, values: bool
) -> Callable[[Piece], Terms]:
    """Time-indexed ratios of states where there are some, else discounted ones of pairs."""

    def terms(piece: Piece) -> Terms:
        model = (piece.q, piece.v) if values else ()
        if piece.state_ratio is not None:
            return of_states(piece.block, piece.state_ratio, *model, piece.gamma)
        return of_pairs(piece, *model)

    return terms


def _stationary(piece: Piece, *model: Padded, normalised: bool) -> Terms:
    return _learned(piece, piece.pair_ratio, *model, normalised=normalised)


def _learned(piece: Piece, ratio: Padded, *model: Padded, normalised: bool) -> Terms:
    options = {"discounted_log": False}
    ends = (piece.terminated,) if normalised else ()
    if not model:
        form = marginal.stationary_snis if normalised else marginal.stationary_is
        return form(piece.block, ratio, *ends, piece.gamma, **options)
    form = marginal.stationary_sndr if normalised else marginal.stationary_dr
    return form(piece.block, ratio, *model, piece.final_v, *ends, piece.gamma, **options)


def _one(bandit_form: Callable[..., Terms], *, model: bool = False) -> Callable[..., Terms]:
    """A bandit's estimator on the only step of each episode."""

    def terms(piece: Piece, *parameter: float) -> Terms:
        given = (piece.ratio, piece.block.reward[:, 0])
        if model:
            given += (piece.q[:, 0], piece.v[:, 0])
        return bandit_form(*given, *parameter)

    return terms


def _with_embedding(piece: Piece) -> Terms:
    return bandit.ipw(piece.embedding_ratio[:, 0], piece.block.reward[:, 0])


def _with_clusters(piece: Piece) -> Terms:
    return bandit.dr(
        piece.cluster_ratio[:, 0], piece.block.reward[:, 0], piece.effect[:, 0], piece.effect_v[:, 0]
    )


def _of(form: Callable[..., Terms], *reads: str) -> Callable[..., Terms]:
    """A sequential estimator as a function of a piece."""
    return lambda piece: form(piece.block, *(getattr(piece, name) for name in reads), piece.gamma)


_MODEL = ("q", "v")
_RATIO = ("state_ratio or pair_ratio",)
_W, _DR, _MIS, _FIT = Basis.WEIGHTS, Basis.DOUBLY_ROBUST, Basis.MARGINAL, Basis.MODEL

ESTIMATORS: dict[str, Estimator] = {
    "dm": Estimator(_FIT, _MODEL, lambda piece: sequential.dm(piece.v)),
    "tis": Estimator(_W, (), _of(sequential.tis), one_step=False),
    "pdis": Estimator(_W, (), _of(sequential.pdis), one_step=False),
    "wis": Estimator(_W, (), _of(sequential.wis), one_step=False),
    "wpdis": Estimator(_W, (), _of(sequential.wpdis), one_step=False),
    "dr": Estimator(_DR, _MODEL, _of(sequential.dr, *_MODEL)),
    "wdr": Estimator(_DR, _MODEL, _of(sequential.wdr, *_MODEL), one_step=False),
    "magic": Estimator(_DR, _MODEL, _of(sequential.wdr, *_MODEL), one_step=False),
    "switch": Estimator(
        _DR,
        _MODEL,
        lambda piece, threshold: sequential.switch(
            piece.block, piece.q, piece.v, piece.gamma, threshold=threshold
        ),
        grid="threshold",
    ),
    "sope": Estimator(
        _MIS,
        ("state_ratio",),
        lambda piece, window: marginal.sm_sope(
            piece.block, piece.state_ratio, piece.gamma, window=int(window)
        ),
        one_step=False,
        grid="window",
    ),
    "mis": Estimator(
        _MIS,
        _RATIO,
        _marginal(marginal.sm_is, lambda piece: _stationary(piece, normalised=False), values=False),
        one_step=False,
    ),
    "wmis": Estimator(
        _MIS,
        _RATIO,
        _marginal(marginal.sm_snis, lambda piece: _stationary(piece, normalised=True), values=False),
        one_step=False,
    ),
    "mdr": Estimator(
        _DR,
        (*_MODEL, *_RATIO),
        _marginal(
            marginal.sm_dr, lambda piece, q, v: _stationary(piece, q, v, normalised=False), values=True
        ),
        one_step=False,
    ),
    "wmdr": Estimator(
        _DR,
        (*_MODEL, *_RATIO),
        _marginal(
            marginal.sm_sndr, lambda piece, q, v: _stationary(piece, q, v, normalised=True), values=True
        ),
        one_step=False,
    ),
    "drl": Estimator(
        _DR,
        (*_MODEL, *_RATIO),
        _marginal(
            lambda block, ratio, q, v, gamma: marginal.drl(
                block, marginal.pair_ratio(block, ratio), q, v, gamma
            ),
            lambda piece, q, v: _stationary(piece, q, v, normalised=False),
            values=True,
        ),
        one_step=False,
    ),
    "dice": Estimator(
        _FIT,
        ("dice_ratio",),
        lambda piece: _learned(piece, piece.dice_ratio, normalised=True),
        one_step=False,
    ),
    "mwl": Estimator(
        _FIT,
        ("mwl_ratio",),
        lambda piece: _learned(piece, piece.mwl_ratio, normalised=True),
        one_step=False,
    ),
    "ipw": Estimator(_W, (), _one(bandit.ipw), one_step=True),
    "snipw": Estimator(_W, (), _one(bandit.snipw), one_step=True),
    "sndr": Estimator(_DR, _MODEL, _one(bandit.sndr, model=True), one_step=True),
    "dros": Estimator(
        _DR,
        _MODEL,
        lambda piece, shrinkage: _one(lambda *given: bandit.dros(*given, shrinkage=shrinkage), model=True)(
            piece
        ),
        one_step=True,
        grid="shrinkage",
    ),
    "sg_ipw": Estimator(
        _W,
        (),
        lambda piece, strength: _one(lambda *given: bandit.sg_ipw(*given, strength=strength))(piece),
        one_step=True,
        grid="strength",
    ),
    "sg_dr": Estimator(
        _DR,
        _MODEL,
        lambda piece, strength: _one(lambda *given: bandit.sg_dr(*given, strength=strength), model=True)(
            piece
        ),
        one_step=True,
        grid="strength",
    ),
    "mips": Estimator(_MIS, ("embedding_ratio",), _with_embedding, one_step=True),
    "offcem": Estimator(_DR, ("cluster_ratio", "effect", "effect_v"), _with_clusters, one_step=True),
}
"""Every estimator of `peira evaluate` for logs of actions; those for slates are functions of `slate`."""


def grid_of(parameter: str, piece: Piece) -> list[float]:
    """The values of a parameter among which SLOPE chooses, from little bias to little variance."""
    if parameter == "window":
        steps = piece.block.steps
        return [float(steps), *(float(n) for n in (16, 8, 4, 2, 1, 0) if n < steps)]
    if parameter == "strength":
        return [0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0]
    greatest = float(weights(np.cumsum(piece.block.log_ratio, axis=1)).max())
    # ∞ keeps every weight; the rest fall from the greatest to 1.
    falling = np.geomspace(max(greatest, 1.0), 1.0, 6)
    return [np.inf, *falling.tolist()] if parameter == "threshold" else [1e12, *(falling**2).tolist()]


def fitting(horizon: int) -> list[str]:
    """The estimators for logs whose longest episode has `horizon` steps."""
    return [name for name, of in ESTIMATORS.items() if of.one_step in (None, horizon == 1)]
