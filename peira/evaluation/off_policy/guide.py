"""Every estimator in two plain sentences: how it works, and what must be true for its number to be right."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What an estimator leans on, in the order in which it is trusted when nothing else decides."""

    DOUBLY_ROBUST = 0
    MARGINAL_DOUBLY_ROBUST = 1
    SELF_NORMALISED = 2
    MARGINAL = 3
    WEIGHTED = 4
    BLENDED = 5
    LEARNED_RATIO = 6
    MODEL = 7


KINDS = {
    Kind.DOUBLY_ROBUST: "doubly robust: a model, corrected by weighted data",
    Kind.MARGINAL_DOUBLY_ROBUST: "doubly robust: a model, corrected by data weighted by states or groups of actions",
    Kind.SELF_NORMALISED: "weighted data, weights divided by their mean",
    Kind.MARGINAL: "data weighted by states or groups of actions",
    Kind.WEIGHTED: "weighted data",
    Kind.BLENDED: "a model, corrected by data only where weights allow",
    Kind.LEARNED_RATIO: "weighted data, weights learned",
    Kind.MODEL: "a model alone",
}

FITTED_KINDS = frozenset({Kind.LEARNED_RATIO, Kind.MODEL})
"""Those that rest on something fitted alone: their intervals leave its error out."""


class Explanation(NamedTuple):
    """An estimator's full name, its kind, how it works and what it assumes."""

    title: str
    kind: Kind
    how: str
    assumes: str


_SUPPORT = "the candidate only does what the log's policy might have done"
_PROPENSITIES = "the logged probabilities are right"

ESTIMATORS: dict[str, Explanation] = {
    "dm": Explanation(
        "direct method",
        Kind.MODEL,
        "Learns from the log what each action is worth and reads off the candidate's value at the first states.",
        "The model is right. Nothing in its interval shows when it is not.",
    ),
    "tis": Explanation(
        "trajectory importance sampling",
        Kind.WEIGHTED,
        "Weights each episode's return by how much likelier the candidate was to act that way from first to last.",
        f"Short episodes; {_SUPPORT}; {_PROPENSITIES}. Its noise grows exponentially with the length.",
    ),
    "pdis": Explanation(
        "per-decision importance sampling",
        Kind.WEIGHTED,
        "Weights each reward by the actions up to it only; what came later cannot have caused it.",
        f"Short episodes; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "wis": Explanation(
        "weighted importance sampling",
        Kind.SELF_NORMALISED,
        "Averages returns with whole-episode weights that are made to sum to one.",
        f"Enough episodes that the small bias of dividing is gone; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "wpdis": Explanation(
        "weighted per-decision importance sampling",
        Kind.SELF_NORMALISED,
        "Averages the rewards of each step with weights that are made to sum to one at that step.",
        f"Enough episodes that the small bias of dividing is gone; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "dr": Explanation(
        "doubly robust",
        Kind.DOUBLY_ROBUST,
        "Takes the model's value and corrects it, step by step, by the weighted error of the model in the log.",
        f"Either the weights or the model are right; {_SUPPORT}.",
    ),
    "wdr": Explanation(
        "weighted doubly robust",
        Kind.DOUBLY_ROBUST,
        "Doubly robust, with weights that are made to sum to one at each step.",
        f"Either the weights or the model are right; enough episodes; {_SUPPORT}.",
    ),
    "sope": Explanation(
        "spectrum of off-policy estimators",
        Kind.MARGINAL,
        "Uses one weight for the state a few steps back and action ratios only since then.",
        f"States can be compared across episodes; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "mis": Explanation(
        "marginal importance sampling",
        Kind.MARGINAL,
        "Weights each reward by how much oftener the candidate would be in that situation.",
        f"The observation tells all that matters (Markov); visits are estimated well; {_SUPPORT}.",
    ),
    "wmis": Explanation(
        "weighted marginal importance sampling",
        Kind.MARGINAL,
        "Marginal importance sampling with weights that are made to sum to one.",
        f"The observation tells all that matters (Markov); visits are estimated well; {_SUPPORT}.",
    ),
    "mdr": Explanation(
        "marginal doubly robust",
        Kind.MARGINAL_DOUBLY_ROBUST,
        "Takes the model's value and corrects it by its errors, weighted by how often the candidate comes there.",
        f"Either the visit ratios or the model are right; the observation tells all that matters; {_SUPPORT}.",
    ),
    "wmdr": Explanation(
        "weighted marginal doubly robust",
        Kind.MARGINAL_DOUBLY_ROBUST,
        "Marginal doubly robust with weights that are made to sum to one.",
        f"Either the visit ratios or the model are right; the observation tells all that matters; {_SUPPORT}.",
    ),
    "drl": Explanation(
        "double reinforcement learning",
        Kind.MARGINAL_DOUBLY_ROBUST,
        "Marginal doubly robust with model and ratios learned on other episodes than those that they are used on.",
        f"Either the visit ratios or the model are right; the observation tells all that matters; {_SUPPORT}.",
    ),
    "dice": Explanation(
        "distribution correction (DICE)",
        Kind.LEARNED_RATIO,
        "Learns the ratio of visits as the weights under which visits add up, without logged probabilities.",
        "The ratio was learned well (flow residual near 0, mean near 1); the observation tells all that matters.",
    ),
    "mwl": Explanation(
        "minimax weight learning",
        Kind.LEARNED_RATIO,
        "Learns visit ratios that no value function of a rich class can tell from the true ones.",
        "The class of value functions is rich enough; the observation tells all that matters.",
    ),
    "magic": Explanation(
        "model and guided importance sampling, combined",
        Kind.BLENDED,
        "Blends doubly robust estimates that switch to the model at different steps, for the least expected error.",
        f"One of the blended estimates is good; {_SUPPORT}.",
    ),
    "switch": Explanation(
        "switch doubly robust",
        Kind.BLENDED,
        "Corrects the model by the data until an episode's weight gets too large, and trusts the model from there.",
        "The model is good where the weights are large: there it is not corrected.",
    ),
    "ipw": Explanation(
        "inverse propensity weighting",
        Kind.WEIGHTED,
        "Weights each reward by how much likelier the candidate was to take that action.",
        f"Contexts are like those to come; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "snipw": Explanation(
        "self-normalised inverse propensity weighting",
        Kind.SELF_NORMALISED,
        "Averages rewards with action weights that are made to sum to one.",
        f"Enough decisions that the small bias of dividing is gone; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "sndr": Explanation(
        "self-normalised doubly robust",
        Kind.DOUBLY_ROBUST,
        "Doubly robust, with weights that are made to sum to one.",
        f"Either the weights or the model are right; {_SUPPORT}.",
    ),
    "dros": Explanation(
        "doubly robust with optimistic shrinkage",
        Kind.BLENDED,
        "Doubly robust with large weights shrunk smoothly: a little bias for much less noise.",
        "The model is roughly right where weights are large; the shrinkage was tuned on the log.",
    ),
    "sg_ipw": Explanation(
        "subgaussian inverse propensity weighting",
        Kind.WEIGHTED,
        "Weights each reward with ratios that are bent so that none is extreme.",
        f"Little reward hangs on the bent weights; {_SUPPORT}; {_PROPENSITIES}.",
    ),
    "sg_dr": Explanation(
        "subgaussian doubly robust",
        Kind.BLENDED,
        "Doubly robust with ratios that are bent so that none is extreme.",
        f"The model is roughly right where weights are large; {_SUPPORT}.",
    ),
    "mips": Explanation(
        "marginalised inverse propensity weighting",
        Kind.MARGINAL,
        "Weights by features of the actions instead of the actions themselves, for very many actions.",
        "Actions work through their features only; the log's policy tries every combination of features.",
    ),
    "offcem": Explanation(
        "conjunct effect model",
        Kind.MARGINAL_DOUBLY_ROBUST,
        "Weights by clusters of actions and lets a model tell the actions within a cluster apart.",
        "The model gets the differences inside each cluster right; the log's policy tries every cluster.",
    ),
}


def kind_of(estimator: str) -> Kind:
    """The kind of an estimator; one that is not described here is trusted last, as a model alone is."""
    return ESTIMATORS[estimator].kind if estimator in ESTIMATORS else Kind.MODEL


def title_of(estimator: str) -> str:
    """An estimator's full name; empty for one that is not described here."""
    return ESTIMATORS[estimator].title if estimator in ESTIMATORS else ""
