"""What a report says in plain words: whom to believe, who is better, what to try next, what not to trust.

Every rule is stated in the docstring of the function that applies it; the words are made from the numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Literal, NamedTuple, get_args

import numpy as np

from peira.evaluation.off_policy.formatting import (
    counted,
    listed,
    measured,
    measured_interval,
    number,
    printable,
    share,
)
from peira.evaluation.off_policy.guide import (
    FITTED_KINDS,
    KINDS,
    kind_of,
)
from peira.evaluation.off_policy.portfolio import SHARPE_CAP, portfolios

Judgement = Literal["better", "worse", "unclear", "doubtful", "not judged"]

BEHAVIOUR = "behaviour"
"""What `settings["baseline"]` says when candidates are compared with the policy that wrote the log."""

NOTABLE_SHARE = 0.01
"""A probability missing from a return distribution from which on it is worth a sentence."""

MODEL_ALONE = "the model alone, whose error is in no interval"
"""How a warning ends about an estimate that weights hardly touch, though its kind (MAGIC, SWITCH, …) would use them."""

MANY_STATEMENTS = 5
"""From so many comparisons on it is said how many would be won by chance."""


class Writing(NamedTuple):
    """How names and foreign text are set: escaped and emphasised for the medium at hand."""

    name: Callable[[str], str]
    text: Callable[[str], str]


PLAIN = Writing(name=lambda name: f"“{printable(name)}”", text=printable)


class Section(NamedTuple):
    """A heading of the verdict and its sentences."""

    heading: str
    sentences: list[str]


class Shortlist(NamedTuple):
    """The candidates to try next and what they are worth as a portfolio, by `true` or `estimated` values.

    `baseline` is the value that they are to beat; `spread` and `sharpe` are None for a single candidate.
    """

    names: list[str]
    values: Literal["true", "estimated"]
    baseline: float
    best: float
    worst: float
    gain: float
    spread: float | None
    sharpe: float | None


def verdict(report: dict) -> list[str]:
    """The report in plain sentences: comparison with the baseline, what to try next, what not to trust.

    The rules:
      Whom to believe: `most_trusted`. Every statement about a candidate is made under that estimator.
      Better, worse, unclear, doubtful: `judgement`, by the interval of that estimator against the baseline's value.
      What to try next: `shortlist`.
      Nothing is said about the worth of a candidate whose estimate was refused, only that it was, and why.
    """
    return [sentence for section in sections(report) for sentence in section.sentences]


def sections(report: dict, writing: Writing = PLAIN) -> list[Section]:
    """The verdict under its three headings, names and foreign text set by `writing`."""
    return [
        Section(f"Compared with {against(report, writing)}", _comparison(report, writing)),
        Section("What to try next", _next_steps(report, writing)),
        Section("What not to trust", _doubts(report, writing)),
    ]


def most_trusted(report: dict) -> str | None:
    """The estimator whose intervals the verdict goes by; None where no estimator gives an interval at all.

    Among the estimators that give an interval for at least one candidate, the first by:
      1. resting on the log and not on something fitted alone (DM, DICE, …), whose error its interval leaves out;
      2. more candidates with an interval from which limits may be claimed (`no_bound` is null);
      3. more candidates with an interval;
      4. fewer candidates with a warning about the estimate;
      5. the order of `guide.Kind`: doubly robust, then weights alone, then blends that trust a model where weights
         give out;
      6. the smaller median width of its intervals;
      7. the order in which the estimators were named.
    """
    order = report["settings"]["estimators"]

    def doubt(estimator: str) -> tuple:
        given = [of for of in report["candidates"] if interval_of(report, of, estimator) is not None]
        believable = sum(report["candidates"][of]["estimates"][estimator]["no_bound"] is None for of in given)
        warned = sum(bool(report["candidates"][of]["estimates"][estimator]["warnings"]) for of in given)
        width = median(high - low for low, high in (interval_of(report, of, estimator) for of in given))
        kind = kind_of(estimator)
        return kind in FITTED_KINDS, -believable, -len(given), warned, kind, width, order.index(estimator)

    able = [name for name in order if any(interval_of(report, of, name) for of in report["candidates"])]
    return min(able, key=doubt, default=None)


def interval_of(report: dict, candidate: str, estimator: str) -> tuple[float, float] | None:
    """The interval of an estimate, ±∞ where a one-sided one has no end; None where there is no estimate or interval."""
    estimate = report["candidates"][candidate]["estimates"].get(estimator)
    if estimate is None or estimate["value"] is None or estimate["interval"] is None:
        return None
    low, high = estimate["interval"]
    return -math.inf if low is None else low, math.inf if high is None else high


def baseline(report: dict, estimator: str | None = None) -> tuple[str, float | None]:
    """Name and value of what candidates are compared with.

    The mean return in the log for `behaviour`; for a candidate its estimate under `estimator`, None without one.
    """
    name = report["settings"]["baseline"]
    if name == BEHAVIOUR:
        return name, report["log"]["behaviour"]["value"]
    estimate = report["candidates"][name]["estimates"].get(estimator)
    return name, None if estimate is None else estimate["value"]


def portfolio_baseline(report: dict, estimator: str) -> float | None:
    """What the report's portfolios had to beat, worked out from best and gain; `baseline` where none gains anything.

    It is the baseline's true value where portfolios are of true values and that is known.
    """
    for of in report["portfolio"].get(estimator, {}).values():
        if of["best"] is not None and of["sharpe_numerator"]:
            return of["best"] - of["sharpe_numerator"]
    return baseline(report, estimator)[1]


def judgement(report: dict, candidate: str, estimator: str | None) -> Judgement:
    """How a candidate stands against the baseline under an estimator.

    doubtful    wherever the interval lies, no limits may be claimed from it (`no_bound` of the estimate)
    better      else, its whole interval lies above the baseline's value
    worse       else, its whole interval lies below it
    unclear     else, the interval contains it
    not judged  no estimator, estimate or interval, no value of the baseline, or the candidate is the baseline
    """
    name, value = baseline(report, estimator)
    interval = None if estimator is None else interval_of(report, candidate, estimator)
    if interval is None or value is None or candidate == name:
        return "not judged"
    if report["candidates"][candidate]["estimates"][estimator]["no_bound"] is not None:
        return "doubtful"
    if interval[0] <= value <= interval[1]:
        return "unclear"
    return "better" if interval[0] > value else "worse"


def judgements(report: dict, estimator: str | None) -> dict[str, Judgement]:
    """The judgement of every candidate but the baseline, candidates in the estimator's ranking."""
    name = report["settings"]["baseline"]
    return {of: judgement(report, of, estimator) for of in in_order(report, estimator) if of != name}


def in_order(report: dict, estimator: str | None) -> list[str]:
    """All candidates as the estimator ranks them; as they came where it does not rank."""
    ranked = report["ranking"].get(estimator, [])
    return [*ranked, *(name for name in report["candidates"] if name not in ranked)]


def shortlist(report: dict, estimator: str | None) -> Shortlist | None:
    """The candidates to try next; None where none comes into question.

    In question are those judged better or unclear (none that is doubtful) that the estimator puts above the baseline,
    in its ranking. Of them the first k are taken, k the size of greatest SharpeRatio@k (the smallest on ties) up to the
    greatest k that was asked for; one where no ratio is positive. The ratio is that of true values where the report's
    portfolios are and all of these are known.
    """
    eligible = [
        of
        for of, judged in judgements(report, estimator).items()
        if judged in ("better", "unclear")
        and report["candidates"][of]["estimates"][estimator]["value"] > baseline(report, estimator)[1]
    ]
    if not eligible:
        return None
    truth = [report["candidates"][of]["truth"] for of in eligible]
    to_beat = portfolio_baseline(report, estimator)
    kind = "estimated" if None in (*truth, to_beat) else report["portfolio_values"]
    if kind == "estimated":
        _, to_beat = baseline(report, estimator)
    estimated = [report["candidates"][of]["estimates"][estimator]["value"] for of in eligible]
    values = np.array(truth if kind == "true" else estimated, dtype=np.float64)
    of_k = portfolios(values, np.arange(len(values)), to_beat)
    greatest = max([1, *report["settings"]["k"]])
    # NaN at k = 1, where the ratio is not defined.
    sharpe = np.nan_to_num(of_k.sharpe[:greatest])
    last = int(np.argmax(sharpe))
    spread = None if last == 0 else float(of_k.std[last])
    return Shortlist(
        eligible[: last + 1],
        kind,
        to_beat,
        float(of_k.best[last]),
        float(of_k.worst[last]),
        float(of_k.sharpe_numerator[last]),
        spread,
        None if last == 0 else float(sharpe[last]),
    )


def against(report: dict, writing: Writing = PLAIN) -> str:
    """What candidates are compared with, in words."""
    name = report["settings"]["baseline"]
    return "the policy that ran" if name == BEHAVIOUR else writing.name(name)


def worth(report: dict, value: float | None) -> str:
    """A value of the baseline with the digits that its error warrants."""
    if report["settings"]["baseline"] == BEHAVIOUR:
        return measured(value, report["log"]["behaviour"]["standard_error"])
    return number(value)


def _comparison(report: dict, writing: Writing) -> list[str]:
    trusted = most_trusted(report)
    if trusted is None:
        return ["No estimator gives an interval for any candidate: nothing can be said about their worth."]
    _, value = baseline(report, trusted)
    current = against(report, writing)
    sentences = [_grounds(report, trusted, writing)]
    if value is None:
        return [*sentences, f"{current} has no estimate by {writing.text(trusted)}: nothing can be compared."]
    judged = judgements(report, trusted)
    called = {word: [of for of, is_ in judged.items() if is_ == word] for word in get_args(Judgement)}

    def shown(of: str) -> str:
        estimate = report["candidates"][of]["estimates"][trusted]
        best_guess = measured(estimate["value"], estimate["standard_error"])
        return f"{writing.name(of)} ({best_guess}; {measured_interval(estimate['interval'])})"

    words = {
        "better": f"better than {current}, worth {worth(report, value)}",
        "worse": f"worse than {current}, worth {worth(report, value)}",
        "unclear": f"not told apart from {current}: the value {worth(report, value)} lies inside the interval",
        "doubtful": "left open, because the interval is not to be believed",
    }
    for word, outcome in words.items():
        if called[word]:
            verb = "is" if len(called[word]) == 1 else "are"
            who = f"{number(len(called[word]))} of {counted(len(judged), 'candidate')} {verb}"
            sentences.append(f"{who} {outcome}: {listed([shown(of) for of in called[word]])}.")
    if judged and not called["better"]:
        sentences.append("No candidate is shown to be better.")
    sentences += _standing_clear(report, trusted, called["better"], writing)
    if silent := called["not judged"]:
        named = listed([writing.name(of) for of in silent])
        sentences.append(f"Nothing is said about {named}, without an interval by {writing.text(trusted)}.")
    made = sum(len(called[word]) for word in ("better", "worse", "unclear"))
    if made >= MANY_STATEMENTS:
        by_chance = made * (1 - report["settings"]["confidence"]) / 2
        sentences.append(
            f"Were all {number(made)} exactly as good as {current}, {number(round(by_chance, 2))} of them would still "
            "be called better by chance, on average."
        )
    return sentences + _checked(report, called, writing)


def _grounds(report: dict, trusted: str, writing: Writing) -> str:
    grounds = (
        f"Judged by {writing.text(trusted)} ({KINDS[kind_of(trusted)]}), the estimator least in doubt here"
    )
    grounds += f", and its {share(report['settings']['confidence'])} intervals."
    if kind_of(trusted) in FITTED_KINDS:
        return f"{grounds} They leave out the error of what was fitted: take what follows as a guess."
    return grounds


def _standing_clear(report: dict, trusted: str, better: list[str], writing: Writing) -> list[str]:
    """Of the better ones, those above the whole interval of the behaviour policy, whose value is an estimate too."""
    _, upper = report["log"]["behaviour"]["interval"] or (None, None)
    if report["settings"]["baseline"] != BEHAVIOUR or upper is None or not better:
        return []
    edge = f"{worth(report, upper)}, the upper end of that policy’s own interval"
    clear = [of for of in better if interval_of(report, of, trusted)[0] > upper]
    if not clear:
        return [f"None of the better ones stands clear of {edge}."]
    stand = "stands" if len(clear) == 1 else "stand"
    return [f"{listed([writing.name(of) for of in clear])} also {stand} clear of {edge}."]


def _checked(report: dict, called: dict[str, list[str]], writing: Writing) -> list[str]:
    """How many statements the true values bear out, where they are known."""
    name, value = baseline(report)
    if name != BEHAVIOUR:
        value = report["candidates"][name]["truth"]
    truth = {of: report["candidates"][of]["truth"] for of in (*called["better"], *called["worse"])}
    known = {of: true for of, true in truth.items() if true is not None}
    if not known or value is None:
        return []
    wrong = [of for of, true in known.items() if (true > value) != (of in called["better"])]
    held = f"{number(len(known) - len(wrong))} of the {counted(len(known), 'statement')} better or worse hold"
    about = f", not the one about {listed([writing.name(of) for of in wrong], limit=20)}" if wrong else ""
    return [f"True values are known: {held}{about}."]


def _next_steps(report: dict, writing: Writing) -> list[str]:
    trusted = most_trusted(report)
    chosen = shortlist(report, trusted)
    current = against(report, writing)
    if chosen is None:
        return [
            f"Nothing: no candidate can be recommended over {current}. Collect more data, or other candidates."
        ]
    size = len(chosen.names)
    named = listed([writing.name(of) for of in chosen.names], limit=10)
    judged = judgements(report, trusted)
    passed_over = [
        writing.name(of)
        for of in list(judged)[: list(judged).index(chosen.names[-1])]
        if of not in chosen.names
    ]
    without = f", leaving out {listed(passed_over)}" if passed_over else ""
    place = "ranked first" if size == 1 else f"the first {number(size)}"
    sentences = [f"Try {named}: {place} by {writing.text(trusted)}{without}."]
    if chosen.sharpe is not None:
        sentences.append(
            f"By {chosen.values} values the best of them is worth {number(chosen.best)}, the worst "
            f"{number(chosen.worst)}, {current} {worth(report, chosen.baseline)}. "
            f"SharpeRatio@{size} is {number(chosen.sharpe)} (gain {number(chosen.gain)} over spread "
            f"{number(chosen.spread)}); no other number of first candidates has a greater one."
        )
        if chosen.sharpe >= SHARPE_CAP:
            sentences.append("That ratio is at its cap: these candidates are near copies of one another.")
    unsure = [writing.name(of) for of in chosen.names if judged[of] == "unclear"]
    if len(unsure) == size:
        them = "It is not" if size == 1 else "None of them is"
        sentences.append(f"{them} shown to be better: a test is a gamble on the estimate.")
    elif unsure:
        sentences.append(f"{listed(unsure)} may also turn out worse than {current}: watch during the test.")
    return sentences


def _doubts(report: dict, writing: Writing) -> list[str]:
    """Refusals, findings and warnings, each told once; contradictions; what intervals leave out."""
    trusted = most_trusted(report)
    code_of = {
        of["text"]: of["code"]
        for findings in (report["log"]["findings"], *(c["findings"] for c in report["candidates"].values()))
        for of in findings
    }
    refused = _refusals(report, code_of)
    told = {reason for reasons in refused.values() for reason in reasons.values()}
    found: dict[str, dict[str, str]] = {}
    warned: dict[str, dict[str, str]] = {}
    for name, candidate in report["candidates"].items():
        for finding in candidate["findings"]:
            if finding["text"] not in told:
                found.setdefault(finding["code"], {})[name] = finding["text"]
        for warning in candidate["estimates"].get(trusted, {"warnings": []})["warnings"]:
            if warning not in code_of:
                warned.setdefault(warning, {})[name] = warning
    doubts = []
    for (estimators, _), reasons in refused.items():
        refuse = "refuses" if len(estimators) == 1 else "refuse"
        by = listed([writing.text(name) for name in estimators])
        doubts.append(f"{by} {refuse} {_about(reasons, writing)}")
    doubts += [
        f"The log: {writing.text(of['text'])}." for of in report["log"]["findings"] if of["text"] not in told
    ]
    doubts += [_about(texts, writing) for texts in found.values()]
    doubts += [f"{writing.text(trusted)} on {_about(texts, writing)}" for texts in warned.values()]
    doubts += _contradictions(report, trusted, writing)
    doubts += _missing_masses(report, writing)
    doubts = doubts or [
        "No estimate was refused, nothing was found wrong with the log, and no estimators contradict."
    ]
    return doubts + _left_out(report, writing)


def _left_out(report: dict, writing: Writing) -> list[str]:
    """Whose intervals do not know the error of what was fitted, with the candidates where it is not so for all."""
    named = []
    for estimator in report["settings"]["estimators"]:
        estimates = {
            of: candidate["estimates"][estimator]
            for of, candidate in report["candidates"].items()
            if candidate["estimates"].get(estimator, {"value": None})["value"] is not None
        }
        alone = [
            writing.name(of)
            for of, estimate in estimates.items()
            if any(MODEL_ALONE in warning for warning in estimate["warnings"])
        ]
        if kind_of(estimator) in FITTED_KINDS or (alone and len(alone) == len(estimates)):
            named.append(writing.text(estimator))
        elif alone:
            named.append(f"{writing.text(estimator)} (on {listed(alone)})")
    return [f"Intervals by {listed(named)} leave out the error of what was fitted."] if named else []


def _refusals(report: dict, code_of: dict[str, str]) -> dict[tuple, dict[str, str]]:
    """Candidate → reason, for every set of estimators that refuse candidates for one kind of reason."""
    refused: dict[tuple, dict[str, str]] = {}
    for name, candidate in report["candidates"].items():
        estimators: dict[str, list[str]] = {}
        for estimator, estimate in candidate["estimates"].items():
            if estimate["refused"] is not None:
                estimators.setdefault(estimate["refused"], []).append(estimator)
        for reason, by in estimators.items():
            refused.setdefault((tuple(by), code_of.get(reason, reason)), {})[name] = reason
    return refused


def _about(texts: dict[str, str], writing: Writing) -> str:
    """`A: why.`, and whether the same is true of others, in their own numbers."""
    first, *others = texts
    sentence = f"{writing.name(first)}: {writing.text(texts[first].rstrip('.'))}."
    if not others:
        return sentence
    if len(set(texts.values())) == 1:
        return f"{listed([writing.name(of) for of in texts])}: {writing.text(texts[first].rstrip('.'))}."
    return f"{sentence} Much the same holds for {listed([writing.name(of) for of in others])}."


def _contradictions(report: dict, trusted: str | None, writing: Writing) -> Iterable[str]:
    """Candidates that one estimator's interval puts above the baseline and another's below it."""
    for of in in_order(report, trusted):
        says = {name: judgement(report, of, name) for name in report["settings"]["estimators"]}
        above = [writing.text(name) for name, word in says.items() if word == "better"]
        below = [writing.text(name) for name, word in says.items() if word == "worse"]
        if above and below:
            yield (
                f"Estimators contradict each other on {writing.name(of)}: better by {listed(above)}, worse by "
                f"{listed(below)}."
            )


def _missing_masses(report: dict, writing: Writing) -> list[str]:
    mass = {
        name: candidate["distribution"]["missing_mass"]
        for name, candidate in report["candidates"].items()
        if candidate["distribution"] is not None
    }
    missing = {name: of for name, of in mass.items() if of is not None and abs(of) > NOTABLE_SHARE}
    named = listed([f"{writing.name(name)} ({share(of)})" for name, of in missing.items()])
    return [f"Return distributions from which probability is missing: {named}."] if missing else []
