"""The features of the linear oracles: a context's vector crossed with what describes an action."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from peira.experience.decisions import FeatureSchema

CROSSES = ("none", "features", "pairs", "disjoint")
# More weights than this in one system of equations are not chosen by themselves: solving takes the cube of it.
MOST_WEIGHTS = 1_024
# Rows of a block whose products stay in the cache and below the size from which OpenBLAS calls in other threads, which
# on cores that others use as well takes ten times as long.
BLOCK = 1_024

Context = Float[np.ndarray, "rows columns"] | sparse.csr_array


@dataclass(frozen=True)
class Scale:
    """Centre and deviation of the numbers of contexts, and root mean square of the action features.

    A feature that does not vary has deviation 1.
    """

    centre: Float[np.ndarray, " numbers"]
    deviation: Float[np.ndarray, " numbers"]
    size: Float[np.ndarray, " features"]

    @classmethod
    def of(
        cls,
        number: Float[np.ndarray, "rows numbers"],
        feature: Float[np.ndarray, "rows features"],
        weight: Float[np.ndarray, " rows"] | None = None,
    ) -> Scale:
        """That of some rows."""
        number, feature = number.astype(np.float64), feature.astype(np.float64)
        share = np.full(len(number), 1 / len(number)) if weight is None else weight / weight.sum()
        centre = share @ number
        deviation = np.sqrt(share @ (number - centre) ** 2)
        size = np.sqrt(share @ feature**2)
        # The mean of equal numbers is rounded and need not be equal to them.
        varies = deviation > 1e-7 * np.abs(number).max(0, initial=0.0)
        return cls(centre, np.where(varies, deviation, 1.0), np.where(size > 0, size, 1.0))


class Design:
    """f(x, a) = Σ_p θ_p · h_term(p)(a) · φ_column(p)(x): which products of action terms and context columns there are.

    φ(x) = [1, standardised numbers, one-hot of each category, and with `interactions` their products with the numbers].
    h(a) = [1, the action features g_j, with pairs their products g_j g_k, one-hot of the action].
      "none"      φ, the one-hot and g_j for themselves: contexts do not change which action is best
      "features"  φ and g_j·φ, and the one-hot
      "pairs"     φ, g_j·φ and g_j g_k·φ, and the one-hot
      "disjoint"  a weight vector of its own for every action, on φ and g_j: nothing is shared
    `groups` is the number of separate systems of equations, `weights` the number of weights in each.
    """

    def __init__(self, schema: FeatureSchema, crosses: str, interactions: bool) -> None:
        self.schema, self.crosses, self.interactions = schema, crosses, interactions
        numbers, features, actions = len(schema.numbers), len(schema.action_numbers), len(schema.actions)
        values = [len(known) + 1 for known in schema.categories.values()]
        each = 1 + numbers if interactions else 1
        # Where the columns of each category begin; those of one value lie together.
        self._begin = 1 + numbers + np.cumsum([0, *[each * count for count in values]])[:-1].astype(np.int64)
        self._each = each
        self.columns = 1 + numbers + each * sum(values)
        self.nonzero = 1 + numbers + each * len(values)
        self.pairs = np.array(
            list(combinations(range(features), 2)) if crosses == "pairs" else [], dtype=np.int64
        ).reshape(-1, 2)
        self.terms = 1 + features + len(self.pairs)
        own_context = {"none": 1, "disjoint": 1, "features": 1 + features, "pairs": self.terms}[crosses]
        term = [np.repeat(np.arange(own_context), self.columns), np.arange(own_context, self.terms)]
        column = [np.tile(np.arange(self.columns), own_context), np.zeros(self.terms - own_context, int)]
        if crosses != "disjoint":
            term.append(np.arange(self.terms, self.terms + actions))
            column.append(np.zeros(actions, int))
        self.term, self.column = np.concatenate(term), np.concatenate(column)
        self.groups = actions if crosses == "disjoint" else 1
        self.weights = len(self.term)

    @classmethod
    def choose(cls, schema: FeatureSchema, crosses: str | None, interactions: bool | None) -> Design:
        """The design with what is given; what is None is the richest that has at most 1,024 weights a system.

        In the order: features (where there are action features) or disjoint (where there are none), then none; each
        with interactions first. Pairs are taken only where asked for: on the payment simulator, whose truth has them,
        they cost more in variance than they bring at 40,000 rows.
        """
        rich = ("features" if schema.action_numbers else "disjoint", "none")
        for cross in rich if crosses is None else (crosses,):
            for product in (True, False) if interactions is None else (interactions,):
                found = cls(schema, cross, product)
                if found.weights <= MOST_WEIGHTS:
                    return found
        return found

    def context(
        self,
        number: Float[np.ndarray, "rows numbers"],
        category: Int[np.ndarray, "rows categories"],
        scale: Scale,
    ) -> Context:
        """φ(x) [rows, columns]: sparse where few of many columns are not 0."""
        rows, numbers = number.shape
        value = np.empty((rows, self.nonzero))
        value[:, 0] = 1.0
        np.subtract(number, scale.centre, out=value[:, 1 : 1 + numbers])
        value[:, 1 : 1 + numbers] /= scale.deviation
        if not len(self._begin):
            return value
        index = np.empty((rows, self.nonzero), np.int32)
        index[:, : 1 + numbers] = np.arange(1 + numbers)
        first = self._begin + category * self._each
        index[:, 1 + numbers :] = (first[:, :, None] + np.arange(self._each)).reshape(rows, -1)
        value[:, 1 + numbers :] = np.tile(value[:, : self._each], len(self._begin))
        if 8 * self.nonzero < self.columns:
            begin = np.arange(0, (rows + 1) * self.nonzero, self.nonzero)
            return sparse.csr_array((value.ravel(), index.ravel(), begin), shape=(rows, self.columns))
        dense = np.zeros((rows, self.columns))
        np.put_along_axis(dense, index, value, axis=1)
        return dense

    def basis(
        self, feature: Float[np.ndarray, "*rows features"], scale: Scale
    ) -> Float[np.ndarray, "*rows terms"]:
        """[g_j/size, their products]: the terms h(a) between the 1 and the one-hot."""
        sized = feature / scale.size
        if not len(self.pairs):
            return sized
        return np.concatenate([sized, sized[..., self.pairs[:, 0]] * sized[..., self.pairs[:, 1]]], axis=-1)

    def moments(
        self,
        context: Context,
        action: Int[np.ndarray, " rows"],
        feature: Float[np.ndarray, "rows features"],
        scale: Scale,
        target: Float[np.ndarray, " rows"],
        weight: Float[np.ndarray, " rows"] | None = None,
    ) -> tuple[Float[np.ndarray, "groups weights weights"], Float[np.ndarray, "groups weights"]]:
        """Σ u X Xᵀ and Σ t X of the rows' feature vectors X, one a group; `weight` is u, `target` t (not weighted)."""
        gram = np.zeros((self.groups, self.weights, self.weights))
        cross = np.zeros((self.groups, self.weights))
        basis = self.basis(feature, scale)
        root = None if weight is None else np.sqrt(weight)
        order = np.argsort(action, kind="stable")
        bound = np.searchsorted(action[order], np.arange(len(self.schema.actions) + 1))
        shared = self.crosses != "disjoint"
        if shared and not self._constant(action, basis, order, bound):
            for low in range(0, len(action), 2_048):
                rows = slice(low, low + 2_048)
                full = self._rows(context[rows], basis[rows], action[rows])
                cross[0] += full.T @ target[rows]
                full = full if root is None else full * root[rows, None]
                gram[0] += full.T @ full
            return gram, cross
        for code in np.flatnonzero(np.diff(bound)):
            # One action's rows: with the same terms h, Σ X Xᵀ is the small Σ φ φᵀ times h hᵀ.
            rows = order[bound[code] : bound[code + 1]]
            part = context[rows]
            if shared:
                term = self._terms(basis[rows[:1]], action[rows[:1]])[0, self.term]
                cross[0] += term * (part.T @ target[rows])[self.column]
                small = _gram(part, None if root is None else root[rows])
                gram[0] += np.outer(term, term) * small[np.ix_(self.column, self.column)]
            else:
                if self.terms > 1:
                    part = _beside(part, basis[rows])
                cross[code] = part.T @ target[rows]
                gram[code] = _gram(part, None if root is None else root[rows])
        return gram, cross

    def scores(
        self,
        weights: Float[np.ndarray, "groups weights"],
        context: Context,
        action: Int[np.ndarray, "rows choices"],
        feature: Float[np.ndarray, "rows choices features"],
        scale: Scale,
    ) -> Float[np.ndarray, "rows choices"]:
        """θᵀX of every (row, action): one product of matrices, then a look-up by action code; NaN at code −1."""
        lattice = self._lattice(weights)
        if self.crosses == "disjoint":
            by_action = np.full((len(action), len(lattice) + 1), np.nan)
            by_action[:, :-1] = context @ lattice[:, 0].T
            if action.shape[1] == len(lattice) and (action == self._all).all():
                score = by_action[:, :-1]
            else:
                score = np.take_along_axis(by_action, action, axis=1)
            if self.terms > 1:
                score = score + np.einsum("nkf,nkf->nk", self.basis(feature, scale), lattice[action, 1:, 0])
            return score
        by_term = context @ lattice[0, : self.terms].T
        score = by_term[:, :1] + np.append(weights[0, -len(self.schema.actions) :], np.nan)[action]
        if self.terms > 1:
            score += np.einsum("nkt,nt->nk", self.basis(feature, scale), by_term[:, 1:])
        return score

    def penalty(
        self, scale: Scale, standardised: Float[np.ndarray, " weights"]
    ) -> Float[np.ndarray, "weights weights"]:
        """B diag(λ) Bᵀ with X = B X̃, where X̃ has the features of `scale` (in units of the present ones) standardised.

        A penalty Σ λ θ̃² on the weights of X̃, `standardised` being λ, is θᵀ B diag(λ) Bᵀ θ on those of X, whatever
        units X is in.
        """
        place, column, first, second, cell = self._spread
        deviation = np.ones(self.columns)
        deviation[self._numbers] = np.tile(scale.deviation, len(self._units))
        block = np.concatenate([deviation, np.tile(scale.centre, len(self._units))])
        size = np.concatenate(
            [[1.0], scale.size, scale.size[self.pairs].prod(1), np.ones(len(self.schema.actions))]
        )
        value = np.outer(size, block).ravel()[place]
        product = (value * standardised[column])[first] * value[second]
        return np.bincount(cell, product, self.weights**2).reshape(self.weights, self.weights)

    def observed(self, gram: Float[np.ndarray, "groups weights weights"]) -> Scale:
        """Mean, deviation and size of the features that Σ u X Xᵀ was summed from, in the units of X."""
        total = gram.sum(0)
        numbers = 1 + np.arange(len(self.schema.numbers))
        mean = total[0, numbers] / total[0, 0]
        variance = total[numbers, numbers] / total[0, 0] - mean**2
        own = np.flatnonzero(
            (self.term > 0) & (self.term <= len(self.schema.action_numbers)) & (self.column == 0)
        )
        size = np.sqrt(total[own, own] / total[0, 0])
        deviation = np.sqrt(np.maximum(variance, 0.0))
        return Scale(mean, np.where(variance > 1e-12, deviation, 1.0), np.where(size > 0, size, 1.0))

    @property
    def crossed(self) -> np.ndarray:
        """[weights] which of the weights tell actions or values apart within a context's common part."""
        return (self.term > 0) | (self.column > len(self.schema.numbers))

    @property
    def learning_block(self) -> int:
        """Rows to learn from at a time; more where each block has the large system of equations to add to."""
        return BLOCK if self.crosses == "disjoint" else 16 * BLOCK

    @cached_property
    def _all(self) -> np.ndarray:
        return np.arange(len(self.schema.actions))

    @cached_property
    def _units(self) -> np.ndarray:
        """The columns whose products with the numbers follow them: that of the 1, and that of every value."""
        first = np.zeros(1, np.int64)
        if not self.interactions:
            return first
        return np.concatenate([first, np.arange(1 + len(self.schema.numbers), self.columns, self._each)])

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The columns of the numbers and of their products, unit by unit."""
        return (self._units[:, None] + 1 + np.arange(len(self.schema.numbers))).ravel()

    @cached_property
    def _spread(self) -> tuple[np.ndarray, ...]:
        """Where B has entries: `(place, column, first, second, cell)`.

        `place` of each entry in [terms, columns and numbers again], its column in B, the pairs of entries that share a
        column, and where in B diag(λ) Bᵀ the product of a pair belongs.
        """
        every, unit = np.arange(self.columns), np.repeat(self._units, len(self.schema.numbers))
        weight = np.full((self.terms + len(self.schema.actions), self.columns), -1)
        weight[self.term, self.column] = np.arange(self.weights)
        row = weight[:, np.concatenate([every, self._numbers])].ravel()
        column = weight[:, np.concatenate([every, unit])].ravel()
        place = np.flatnonzero((row >= 0) & (column >= 0))
        place = place[np.argsort(column[place], kind="stable")]
        row, column = row[place], column[place]
        count = np.bincount(column, minlength=self.weights)[column]
        first = np.repeat(np.arange(len(place)), count)
        begin = np.searchsorted(column, column)
        second = np.arange(len(first)) + np.repeat(begin - (np.cumsum(count) - count), count)
        return place, column, first, second, row[first] * self.weights + row[second]

    def _lattice(self, weights: np.ndarray) -> np.ndarray:
        lattice = np.zeros((self.groups, self.terms, self.columns))
        own = self.term < self.terms
        lattice[:, self.term[own], self.column[own]] = weights[:, own]
        return lattice

    def _terms(self, basis: np.ndarray, action: np.ndarray) -> np.ndarray:
        terms = np.zeros((len(action), self.terms + len(self.schema.actions)))
        terms[:, 0] = 1.0
        terms[:, 1 : self.terms] = basis
        terms[np.arange(len(action)), self.terms + action] = 1.0
        return terms

    def _rows(self, context: Context, basis: np.ndarray, action: np.ndarray) -> np.ndarray:
        dense = context.toarray() if sparse.issparse(context) else context
        return self._terms(basis, action)[:, self.term] * dense[:, self.column]

    def _constant(self, action: np.ndarray, basis: np.ndarray, order: np.ndarray, bound: np.ndarray) -> bool:
        """Whether the terms of an action are the same in all its rows."""
        if self.terms == 1:
            return True
        some = np.diff(bound) > 0
        first = np.zeros((len(some), basis.shape[1]))
        first[some] = basis[order[bound[:-1][some]]]
        return bool((basis == first[action]).all())


def _beside(context: Context, basis: np.ndarray) -> np.ndarray | sparse.csr_array:
    if sparse.issparse(context):
        return sparse.csr_array(sparse.hstack([context, sparse.csr_array(basis)]))
    return np.hstack([context, basis])


def _gram(rows: Context, root: np.ndarray | None) -> np.ndarray:
    if sparse.issparse(rows):
        weighted = rows if root is None else sparse.csr_array(rows * root[:, None])
        return (weighted.T @ weighted).toarray()
    weighted = rows if root is None else rows * root[:, None]
    # Of a matrix with its own transpose only half is computed.
    return weighted.T @ weighted
