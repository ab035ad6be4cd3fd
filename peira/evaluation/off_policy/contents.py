"""The tables of a report as plain text cells, the same for Markdown and for the page; no cell is escaped yet."""

from __future__ import annotations

import math
from typing import NamedTuple

from peira.evaluation.off_policy.formatting import DASH, measured, measured_interval, number, share, size
from peira.evaluation.off_policy.guide import ESTIMATORS
from peira.evaluation.off_policy.verdict import in_order, judgement, most_trusted, portfolio_baseline, worth

METRICS = {
    "mse": "mean squared error",
    "nmse": "normalised MSE",
    "rank_correlation": "rank correlation",
    "type_i": "type I error",
    "type_ii": "type II error",
}


class Table(NamedTuple):
    """A header, rows of as many cells, and sentences below: among them why a cell holds a dash."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def notes(report: dict) -> dict[str, int]:
    """Every refusal and warning about an estimate with the number by which tables refer to it, from 1."""
    texts: dict[str, int] = {}
    for candidate in report["candidates"].values():
        for estimate in candidate["estimates"].values():
            for text in (estimate["refused"], *estimate["warnings"]):
                if text is not None:
                    texts.setdefault(text, len(texts) + 1)
    return texts


def notes_of(estimate: dict, numbered: dict[str, int]) -> str:
    """The numbers of an estimate's notes: `1, 3`."""
    texts = [*([] if estimate["refused"] is None else [estimate["refused"]]), *estimate["warnings"]]
    return ", ".join(str(numbered[text]) for text in texts)


def why_dashes(report: dict) -> list[str]:
    """Why there are dashes among the estimates, as far as there are any."""
    given = [estimate for of in report["candidates"].values() for estimate in of["estimates"].values()]
    numbers = [estimate for estimate in given if estimate["value"] is not None]
    reasons = {
        f"A {DASH} for an estimate: it was refused, the note says why.": len(numbers) < len(given),
        f"A {DASH} for an interval or error beside an estimate: the log does not allow one, see the findings.": any(
            estimate["interval"] is None or estimate["standard_error"] is None for estimate in numbers
        ),
        f"A {DASH} for the effective sample size: the estimator uses no importance weights.": any(
            estimate["effective_sample_size"] is None for estimate in numbers
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def behaviour(report: dict) -> Table:
    """What the policy that wrote the log earned."""
    of = report["log"]["behaviour"]
    rows = [
        ["mean return", measured(of["value"], of["standard_error"])],
        ["standard error", measured(of["standard_error"], of["standard_error"])],
        [f"{share(report['settings']['confidence'])} interval", measured_interval(of["interval"])],
    ]
    said = [f"{DASH}: one episode has no spread."] if of["standard_error"] is None else []
    return Table(["behaviour policy", ""], rows, [*said, *of["reasons"]])


def estimates(report: dict) -> Table:
    """A row a candidate and estimator, candidates in the order of the most trusted estimator's ranking."""
    numbered = notes(report)
    rows = [
        [
            name,
            estimator,
            measured(estimate["value"], estimate["standard_error"]),
            measured(estimate["standard_error"], estimate["standard_error"]),
            measured_interval(estimate["interval"]),
            size(estimate["effective_sample_size"]),
            judgement(report, name, estimator),
            notes_of(estimate, numbered),
        ]
        for name in in_order(report, most_trusted(report))
        for estimator, estimate in report["candidates"][name]["estimates"].items()
    ]
    interval = f"{share(report['settings']['confidence'])} interval"
    header = ["candidate", "estimator", "value", "standard error", interval, "ESS", "judgement", "notes"]
    return Table(header, rows, why_dashes(report))


def ranking(report: dict) -> Table:
    """A row a rank, a column an estimator."""
    columns = report["ranking"]
    longest = max((len(names) for names in columns.values()), default=0)
    rows = [
        [str(rank + 1), *(names[rank] if rank < len(names) else DASH for names in columns.values())]
        for rank in range(longest)
    ]
    return Table(["rank", *columns], rows, ["Candidates whose estimate was refused come last."])


def portfolio(report: dict, estimator: str) -> Table:
    """A row a k: the candidate that joins, and what the first k are worth."""
    of = report["portfolio"][estimator]
    rows = [
        [
            str(k),
            report["ranking"][estimator][int(k) - 1],
            *(
                number(of[k][key])
                for key in ("best", "worst", "mean", "std", "sharpe_numerator", "sharpe", "regret")
            ),
        ]
        for k in sorted(of, key=int)
    ]
    header = ["k", "k-th", "best", "worst", "mean", "spread", "gain", "SharpeRatio@k", "regret"]
    if not of:
        return Table([], [], ["No portfolio: the baseline or every candidate has no estimate."])
    said = [f"Gain: best − {worth(report, portfolio_baseline(report, estimator))}, the baseline; at least 0."]
    keys = ("best", "worst", "mean", "regret")
    if any(of[k][key] is None for k in of if int(k) == 1 for key in ("std", "sharpe")):
        said.append(f"A {DASH} at k = 1: one candidate has no spread, hence no ratio.")
    if any(of[k][key] is None for k in of for key in keys):
        said.append(
            f"Any other {DASH}: the estimate of one of the k was refused, or a true value is not known."
        )
    elif any(of[k][key] is None for k in of if int(k) > 1 for key in ("std", "sharpe", "sharpe_numerator")):
        said.append(f"Any other {DASH}: not defined for these values.")
    return Table(header, rows, said)


def metrics(report: dict) -> Table | None:
    """How near each estimator came to the true values; None where none are known."""
    if report["metrics"] is None:
        return None
    by_k = [
        (key, k)
        for key in ("regret", "safety_violation")
        for k in sorted({k for of in report["metrics"].values() for k in of.get(key) or {}}, key=int)
    ]
    words = {"regret": "regret@{}", "safety_violation": "safety violation@{}"}
    rows = [
        [
            estimator,
            *(number(of.get(key)) for key in METRICS),
            *(number((of.get(key) or {}).get(k)) for key, k in by_k),
        ]
        for estimator, of in report["metrics"].items()
    ]
    header = ["estimator", *METRICS.values(), *(words[key].format(k) for key, k in by_k)]
    said = [
        "Type I: share of the safe candidates that the estimator would turn away; type II: of the unsafe ones that it "
        "would let in."
    ]
    if any(DASH in row for row in rows):
        said.append(f"A {DASH}: not defined, because an estimate was refused or all values are equal.")
    return Table(header, rows, said)


def distributions(report: dict) -> Table:
    """Figures of the return distributions: a row for the behaviour policy, and one a candidate that has one."""
    own = {
        name: report["candidates"][name]["distribution"]
        for name in in_order(report, most_trusted(report))
        if report["candidates"][name]["distribution"] is not None
    }
    logged = report["log"]["behaviour"]["returns"]
    everything = [logged, *own.values()]
    quantiles = sorted({level for of in everything for level in of["quantiles"]}, key=float)
    tails = sorted({level for of in everything for level in of["cvar"]}, key=float)

    def numbers(of: dict) -> list[str]:
        return [
            number(of["mean"]),
            number(of["variance"]),
            *(number(of["quantiles"].get(level)) for level in quantiles),
            *(number(of["cvar"].get(level)) for level in tails),
        ]

    rows = [["behaviour policy", "logged returns", *numbers(logged), share(0)]]
    rows += [[name, of["estimator"], *numbers(of), share(of["missing_mass"])] for name, of in own.items()]
    header = ["policy", "by", "mean", "variance"]
    header += [f"{share(float(level))} quantile" for level in quantiles]
    header += [f"CVaR {share(float(level))}" for level in tails]
    said = [
        "CVaR x %: the mean of the worst x % of the returns. Missing mass: probability that the weights lack."
    ]
    left_out = [name for name in report["candidates"] if name not in own]
    if left_out:
        said.append(f"Without an estimated distribution: {', '.join(left_out)}.")
    if any(DASH in row for row in rows):
        said.append(f"A {DASH}: not estimated, as the missing mass may lie there.")
    return Table([*header, "missing mass"], rows, said)


def weights(report: dict) -> Table | None:
    """A row a candidate whose importance weights are known; None where there is none."""
    own = {
        name: report["candidates"][name]["weights"]
        for name in in_order(report, most_trusted(report))
        if report["candidates"][name]["weights"] is not None
    }
    if not own:
        return None
    episodes = report["log"]["episodes"]
    rows = []
    for name, of in own.items():
        last = of["effective_sample_size_by_step"][-1] if of["effective_sample_size_by_step"] else None
        rows.append(
            [
                name,
                size(last),
                share(None if last is None else last / episodes),
                share(of["largest_share"]),
                number(of["without_weight"]),
                share(of["support_violations"]),
            ]
        )
    header = [
        "candidate",
        "ESS at the last step",
        "of the log",
        "largest weight’s share",
        "episodes without weight",
        "unsupported actions",
    ]
    said = [
        "ESS: how many episodes of the candidate’s own the weighted log is worth. Unsupported actions: probability "
        "that the candidate gives to actions which the log’s policy never took."
    ]
    left_out = [name for name in report["candidates"] if name not in own]
    if left_out:
        said.append(f"Without importance weights: {', '.join(left_out)}.")
    if any(DASH in row for row in rows):
        said.append(f"A {DASH}: cannot be told from this log.")
    return Table(header, rows, said)


def findings(report: dict) -> Table:
    """A row a finding about the log or a candidate, in plain words; refusals first."""
    rows = [["the log", of["severity"], of["text"], of["code"]] for of in report["log"]["findings"]]
    for name in in_order(report, most_trusted(report)):
        rows += [
            [name, of["severity"], of["text"], of["code"]] for of in report["candidates"][name]["findings"]
        ]
    rows.sort(key=lambda row: row[1] != "refusal")
    return Table(["about", "severity", "finding", "code"], rows, [])


def estimators(report: dict) -> Table:
    """A row an estimator: how it works, what it assumes, why it was chosen."""
    rows = []
    for name in report["settings"]["estimators"]:
        of = ESTIMATORS.get(name)
        words = [DASH, DASH, DASH] if of is None else [of.title, of.how, of.assumes]
        rows.append([name, *words, report["chosen"].get(name, "named")])
    said = [f"A {DASH}: not described here."] if any(DASH in row for row in rows) else []
    return Table(["estimator", "name", "how it works", "what it assumes", "why it is here"], rows, said)


def nuisances(report: dict) -> Table | None:
    """A row a number about the fitted models; None where none were fitted."""
    rows = [
        [name, quantity, text] for name, of in report["nuisances"].items() for quantity, text in _leaves(of)
    ]
    if not rows:
        return None
    said = [f"A {DASH}: not measured for this model."] if any(DASH in row for row in rows) else []
    return Table(["model", "quantity", "value"], rows, said)


def settings(report: dict) -> Table:
    """The log, the settings, the time taken and the versions: what is needed to do it again."""
    log, seconds = report["log"], report["seconds"]
    rows = [
        ["log", log["path"]],
        ["episodes", number(log["episodes"])],
        ["steps", number(log["steps"])],
        ["longest episode (steps)", number(log["horizon"])],
        *([["actions", number(log["actions"])]] if log["actions"] is not None else []),
        *(
            [["dimensions of an action", number(log["action_dims"])]]
            if log["action_dims"] is not None
            else []
        ),
        ["propensities", log["propensities"]],
        *[[key, text] for key, text in _leaves(report["settings"])],
        ["portfolio values", report["portfolio_values"]],
        *[[f"seconds: {key}", number(seconds[key])] for key in seconds],
        *[[f"version: {key}", str(version)] for key, version in report["versions"].items()],
    ]
    said = (
        [f"A {DASH}: left out, or for the evaluation to choose."] if any(DASH in row for row in rows) else []
    )
    return Table(["setting", "value"], rows, said)


def _leaves(of: object, path: str = "") -> list[tuple[str, str]]:
    """The numbers and words of a nested dictionary with their paths; a list of them is one row."""
    if isinstance(of, dict):
        # Below the first level keys may be names of candidates, which stay as they are.
        return [
            leaf
            for key, part in of.items()
            for leaf in _leaves(part, f"{path}: {key}" if path else key.replace("_", " "))
        ]
    if isinstance(of, (list, tuple)):
        return [(path, ", ".join(_word(part) for part in of) or DASH)]
    return [(path, _word(of))]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    return number(value) if isinstance(value, (int, float)) else str(value)
