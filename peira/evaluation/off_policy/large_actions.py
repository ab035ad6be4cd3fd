"""Many actions: weights on what actions have in common instead of on the actions themselves.

MIPS is `bandit.ipw`, SN-MIPS `bandit.snipw`, of the ratio of an embedding e of the action: unbiased if the reward
depends on the action through (x, e) only; the bias otherwise is that of w and q within an e. OffCEM is `bandit.dr` of
the ratio of a cluster c of the action with the two-step model of `fit_conjunct_effect`: unbiased if the model gets
the *differences within a cluster* right, whatever its level.

Source: Saito and Joachims 2022, "Off-Policy Evaluation for Large Action Spaces via Embeddings"; Saito, Ren and
Joachims 2023, "Off-Policy Evaluation for Large Action Spaces via Conjunct Effect Modeling".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn

from peira.evaluation.off_policy.bandit import ipw, ridge_reward
from peira.evaluation.off_policy.propensity import (
    Classifier,
    MultinomialLogistic,
    class_probabilities,
    standardisation,
    train_and_held_out,
    with_intercept,
)
from peira.evaluation.off_policy.tuning import accepted_in_order, half_width

CONJUNCT_RIDGE = 0.1
"""Weight of the penalty in OffCEM's model. What it shrinks of differences within a cluster comes back as bias, for no
weight corrects it: with 20 rows an action and a direct effect of 0.5 (the world of ``results/sharpe/r8_bandits.py``, 20
logs) 1 gives a bias of −0.26 and an RMSE of 0.29, 0.1 gives −0.08 and 0.22. Without a direct effect, where all that is
learned is noise, it costs an RMSE of 0.21 in the place of 0.14."""

Row = Float[np.ndarray, " rows"]
Probs = Float[np.ndarray, "rows actions"]


def embedding_ratio(
    embedding: Int[np.ndarray, "rows dims"],
    embedding_probs: Sequence[Float[np.ndarray, "actions _"]],
    target_probs: Probs,
    behaviour_probs: Probs,
    *,
    dimensions: Literal["joint", "independent"] = "joint",
) -> Row:
    """w(x, e) = p(e|x, π) / p(e|x, π_b) of the logged embedding, with p(e|x, π) = Σ_a π(a|x) p(e|a).

    `embedding_probs[d][a, k]` is p(e_d = k | a); a deterministic embedding has rows of 0 and 1. "joint" takes the
    dimensions as independent of one another given the action, p(e|a) = Π_d p(e_d|a). "independent" multiplies the
    ratios of the dimensions, Π_d p(e_d|x, π)/p(e_d|x, π_b): less variance, and wrong where the action binds the
    dimensions together.

    Raises ValueError where a logged embedding has probability 0 under `behaviour_probs`.
    """
    given_action = [probs[:, embedding[:, d]].T for d, probs in enumerate(embedding_probs)]
    if dimensions == "joint":
        given_action = [np.prod(given_action, axis=0)]
    ratio = np.ones(len(embedding))
    for likelihood in given_action:
        behaviour = (behaviour_probs * likelihood).sum(1)
        if not (behaviour > 0).all():
            row = int(np.argmin(behaviour))
            raise ValueError(
                f"the embedding {embedding[row].tolist()} of row {row} has probability 0 under the log"
            )
        ratio *= (target_probs * likelihood).sum(1) / behaviour
    return ratio


def learned_embedding_ratio(
    features: Float[np.ndarray, "rows features"],
    embedding: Int[np.ndarray, "rows dims"],
    action: Int[np.ndarray, " rows"],
    target_probs: Probs,
    behaviour_probs: Probs,
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    classifier: Classifier | None = None,
) -> Row:
    """w(x, e) = Σ_a π̂_b(a|x, e) π(a|x)/π_b(a|x) where p(e|a) is not known.

    π̂_b(a|x, e) by `classifier` (multinomial logistic regression by default) on (x, one-hot e), cross-fitted by
    `fold`; actions which the log's policy never takes at x get 0, and the others are divided by their sum. Raises
    ValueError where that sum is 0.
    """
    actions = target_probs.shape[1]
    categories = [np.eye(int(of_dim.max()) + 1)[of_dim] for of_dim in embedding.T]
    known = np.column_stack([features, *categories])
    taken = np.empty_like(target_probs)
    for train, held_out in train_and_held_out(fold, len(action)):
        model = MultinomialLogistic(actions) if classifier is None else copy.deepcopy(classifier)
        model.fit(known[train], action[train])
        taken[held_out] = class_probabilities(model, known[held_out], actions)
    taken = np.where(behaviour_probs > 0, taken, 0.0)
    if not (taken.sum(1) > 0).all():
        row = int(np.argmin(taken.sum(1)))
        raise ValueError(
            f"no action that the log's policy takes in row {row} got a probability: the other folds do not hold them; "
            "use fewer folds or a classifier that gives every action a probability"
        )
    taken /= taken.sum(1, keepdims=True)
    ratio = np.divide(
        target_probs, behaviour_probs, out=np.zeros_like(target_probs), where=behaviour_probs > 0
    )
    return (taken * ratio).sum(1)


def select_dimensions(
    ratio_of: Callable[[tuple[int, ...]], Row],
    reward: Row,
    dims: int,
    *,
    search: Literal["exact", "greedy"] = "exact",
    delta: float = 0.05,
) -> tuple[int, ...]:
    """Which dimensions of the embedding MIPS uses: fewer lower the variance and raise the bias, SLOPE decides.

    `ratio_of(subset)` gives w(x, e_subset). Subsets are gone through from all dimensions down to one, within a size by
    falling half-width t_{1−δ/2} s/√n; the last before the first that SLOPE does not accept is chosen. "exact" looks at
    all subsets, "greedy" only at those that drop one more dimension from the narrowest subset accepted of the size
    before.

    Source: Saito and Joachims 2022, section 4.2, with Tucker and Lee's constant.
    """
    subsets: list[tuple[int, ...]] = []
    value: list[float] = []
    width: list[float] = []
    parent = tuple(range(dims))
    for size in range(dims, 0, -1):
        if size == dims:
            level = [parent]
        else:
            level = list(combinations(range(dims) if search == "exact" else parent, size))
        terms = [ipw(ratio_of(subset), reward) for subset in level]
        widths = np.array([half_width(of, delta / 2) for of in terms])
        for place in np.argsort(-widths, kind="stable"):
            subsets.append(level[place])
            value.append(float(terms[place].value()))
            width.append(float(widths[place]))
        accepted = accepted_in_order(np.array(value), np.array(width))
        if accepted < len(subsets):
            return subsets[accepted - 1]
        parent = subsets[-1]
    return parent


def cluster_ratio(
    cluster: Int[np.ndarray, "rows actions"] | Int[np.ndarray, " actions"],
    action: Int[np.ndarray, " rows"],
    target_probs: Probs,
    behaviour_probs: Probs,
) -> Row:
    """w(x, c) = π(c|x)/π_b(c|x) of the logged action's cluster, π(c|x) = Σ_{a in c} π(a|x).

    `cluster[i, a]` is c(x_i, a), or `cluster[a]` where clusters do not depend on the context. Raises ValueError where
    a logged cluster has probability 0 under `behaviour_probs`.
    """
    cluster = np.broadcast_to(cluster, target_probs.shape)
    same = cluster == cluster[np.arange(len(action)), action][:, None]
    behaviour = (behaviour_probs * same).sum(1)
    if not (behaviour > 0).all():
        row = int(np.argmin(behaviour))
        raise ValueError(f"the cluster of action {action[row]} in row {row} has probability 0 under the log")
    return (target_probs * same).sum(1) / behaviour


def fit_conjunct_effect(
    features: Float[np.ndarray, "rows features"],
    context: Int[np.ndarray, " rows"],
    action: Int[np.ndarray, " rows"],
    reward: Row,
    cluster: Int[np.ndarray, "rows actions"] | Int[np.ndarray, " actions"],
    actions: int,
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    ridge: float = CONJUNCT_RIDGE,
    generator: torch.Generator | None = None,
) -> Probs:
    """OffCEM's model f̂(x, a) = ĥ(x, a) + ĝ(x, c(x, a)) of every action at every row, cross-fitted by `fold`.

    ĥ is fitted to differences of rewards, Σ ((r_i − r_j) − (ĥ(x, a_i) − ĥ(x, a_j)))² over the pairs of rows with the
    same `context` (a number of equal x) and the same cluster; then ĝ to r − ĥ(x, a) over (x, c). Both are ridge
    regressions, one an action or cluster, on the standardised x with an intercept; with a `generator` they are the
    networks of the paper's code instead (30-30-30 and 50-50-50 ELU, AdamW, 30 epochs; ĥ has a head an action).

    Raises ValueError where the training rows have no such pair with two different actions: nothing could be learned
    of differences, and DR with clusters would be as biased as MIPS.
    """
    cluster = np.broadcast_to(cluster, (len(action), actions))
    clusters = int(cluster.max()) + 1
    rows = np.arange(len(action))
    logged = cluster[rows, action]
    _, group = np.unique(context * clusters + logged, return_inverse=True)
    effect = np.empty((len(action), actions))
    for train, held_out in train_and_held_out(fold, len(action)):
        _check_pairs(group[train], action[train])
        centre, scale = standardisation(features[train])
        scaled = (features - centre) / scale
        if generator is None:
            h = _pairwise_ridge(scaled, group, action, reward, train, actions, ridge)
            residual = reward - h[rows, action]
            g = ridge_reward(scaled[train], logged[train], residual[train], scaled, clusters, ridge=ridge)
        else:
            h = _pairwise_network(scaled, group, action, reward, train, actions, generator)
            residual = reward - h[rows, action]
            g = _residual_network(scaled, logged, residual, train, clusters, generator)
        effect[held_out] = (h + np.take_along_axis(g, cluster, axis=1))[held_out]
    return effect


def _check_pairs(group: np.ndarray, action: np.ndarray) -> None:
    pairs = np.unique(np.column_stack([group, action]), axis=0)
    if len(pairs) == len(np.unique(group)):
        raise ValueError(
            "no context holds two different actions of one cluster, so their difference cannot be learned; give equal "
            "numbers in `context` to contexts that are alike, or use larger clusters"
        )


def _pairwise_ridge(
    features: np.ndarray,
    group: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    train: np.ndarray,
    actions: int,
    ridge: float,
) -> np.ndarray:
    """ĥ by least squares over all pairs at once: Σ_{i<j} (u_i − u_j)² = m Σ_i u_i² − (Σ_i u_i)² in a group of m."""
    basis = with_intercept(features)
    width = basis.shape[1]
    used = np.flatnonzero(train)
    # Row i of the design: (1, x_i) in the columns of action a_i.
    column = action[used][:, None] * width + np.arange(width)
    start = np.arange(len(used) + 1) * width
    design = sparse.csr_array(
        (basis[used].ravel(), column.ravel(), start), shape=(len(used), actions * width)
    )
    _, of, size = np.unique(group[used], return_inverse=True, return_counts=True)
    member = sparse.csr_array((np.ones(len(used)), (of, np.arange(len(used)))), shape=(len(size), len(used)))
    # Divided by m, every row counts once and not once a partner.
    total = sparse.diags_array(1.0 / size) @ (member @ design)
    summed = member @ design
    gram = design.T @ design - summed.T @ total
    right = design.T @ reward[used] - total.T @ (member @ reward[used])
    solved = sparse.linalg.spsolve((gram + ridge * sparse.eye_array(actions * width)).tocsc(), right)
    return basis @ solved.reshape(actions, width).T


def _pairwise_network(
    features: np.ndarray,
    group: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    train: np.ndarray,
    actions: int,
    generator: torch.Generator,
) -> np.ndarray:
    """ĥ by a network with one head an action; each epoch gives every row a partner drawn from its group."""
    order = np.flatnonzero(train)[np.argsort(group[train], kind="stable")]
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    of = np.repeat(np.arange(len(size)), size)
    kept = torch.from_numpy(np.flatnonzero(size[of] > 1))
    first = torch.from_numpy(start[of])
    count = torch.from_numpy(size[of])
    place = torch.arange(len(order)) - first
    x, a, r = (torch.from_numpy(column[order]) for column in (features, action, reward))

    def loss(net: nn.Module, rows: Tensor) -> Tensor:
        row = kept[rows]
        others = count[row] - 1
        step = 1 + (torch.rand(len(row), generator=generator, dtype=torch.float64) * others).long()
        partner = first[row] + (place[row] + step) % count[row]
        here = net(x[row]).gather(1, a[row][:, None])
        there = net(x[partner]).gather(1, a[partner][:, None])
        return ((r[row] - r[partner]) - (here - there).squeeze(1)).square().mean()

    return _trained(features, (30, 30, 30), actions, len(kept), loss, generator)


def _residual_network(
    features: np.ndarray,
    logged: np.ndarray,
    residual: np.ndarray,
    train: np.ndarray,
    clusters: int,
    generator: torch.Generator,
) -> np.ndarray:
    x, c, r = (torch.from_numpy(column[train]) for column in (features, logged, residual))

    def loss(net: nn.Module, rows: Tensor) -> Tensor:
        return (r[rows] - net(x[rows]).gather(1, c[rows][:, None]).squeeze(1)).square().mean()

    return _trained(features, (50, 50, 50), clusters, len(x), loss, generator)


def _trained(
    features: np.ndarray,
    hidden: tuple[int, ...],
    outputs: int,
    rows: int,
    loss: Callable[[nn.Module, Tensor], Tensor],
    generator: torch.Generator,
) -> np.ndarray:
    """The paper's training: AdamW of 1e-2 and weight decay 1e-4, ×0.95 an epoch, 30 epochs of batches of 128."""
    layers: list[nn.Module] = []
    fan_in = features.shape[1]
    for fan_out in (*hidden, outputs):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ELU()]
        fan_in = fan_out
    net = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.95)
    for _ in range(30):
        for batch in torch.randperm(rows, generator=generator).split(128):
            optimiser.zero_grad()
            loss(net, batch).backward()
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        return net(torch.from_numpy(features)).numpy()
