"""Reports of an off-policy evaluation made by hand, in the shape that `peira evaluate` writes."""

import numpy as np

ESTIMATORS = ("dm", "pdis", "wpdis", "dr", "wdr", "mis", "mdr", "drl", "tis", "wis", "magic", "dice")

REFUSED = "effective sample size 1.7 of 3000 episodes is below 1 %"
WARNED = "one episode carries 23 % of the weight"


def estimate(value: float | None, error: float | None = None, **changes) -> dict:
    """An estimate with a 95 % interval of twice the error to both sides."""
    given = {
        "value": value,
        "standard_error": error,
        "interval": None if value is None or error is None else [value - 2 * error, value + 2 * error],
        "effective_sample_size": None,
        "warnings": [],
        "refused": REFUSED if value is None else None,
        "no_bound": REFUSED if value is None else None,
    }
    return given | changes


def small_report(**candidates: dict) -> dict:
    """Two estimators, `wdr` and `dm`, a behaviour policy worth 1.0, and candidates given as `name=estimates`.

    A ranking and a portfolio are worked out from the values; everything optional is absent.
    """
    estimators = list(next(iter(candidates.values()))) if candidates else []
    report = {
        "log": {
            "path": "logs/march.parquet",
            "episodes": 3000,
            "steps": 41234,
            "horizon": 20,
            "actions": 4,
            "action_dims": None,
            "propensities": "logged",
            "findings": [],
            "behaviour": {
                "value": 1.0,
                "standard_error": 0.05,
                "interval": [0.9, 1.1],
                "reasons": [],
                "refused": None,
                "returns": {
                    "mean": 1.0,
                    "variance": 7.53,
                    "quantiles": {"0.05": -3.61, "0.5": 1.07, "0.95": 5.43},
                    "cvar": {"0.1": -3.97},
                    "missing_mass": 0.0,
                    "returns": [-3.61, 0.2, 1.07, 5.43],
                    "probability": [0.05, 0.4, 0.5, 1.0],
                },
            },
        },
        "settings": {
            "gamma": 0.97,
            "estimators": estimators,
            "interval": "bootstrap",
            "confidence": 0.95,
            "k": list(range(1, len(candidates) + 1)),
            "baseline": "behaviour",
            "seed": 17,
            "folds": 3,
            "resamples": 2000,
        },
        "chosen": {},
        "candidates": {
            name: {
                "estimates": estimates,
                "truth": None,
                "distribution": None,
                "weights": None,
                "findings": [],
            }
            for name, estimates in candidates.items()
        },
        "ranking": {},
        "portfolio": {},
        "portfolio_values": "estimated",
        "metrics": None,
        "nuisances": {},
        "seconds": {
            "reading": 0.613,
            "nuisances": 11.27,
            "estimates": 1.931,
            "intervals": 2.447,
            "total": 16.26,
        },
        "versions": {"peira": "0.1.0", "numpy": "2.3.1"},
        "command": "peira evaluate logs/march.parquet --candidates candidates/ --gamma 0.97 --seed 17",
    }
    rank_and_pool(report)
    return report


def rank_and_pool(report: dict) -> None:
    """Fill `ranking` and `portfolio` from the estimates, or from the true values where all are known."""
    of = report["candidates"]
    true = bool(of) and all(candidate["truth"] is not None for candidate in of.values())
    report["portfolio_values"] = "true" if true else "estimated"
    baseline = report["log"]["behaviour"]["value"]
    for estimator in report["settings"]["estimators"]:
        value = {
            name: -np.inf
            if candidate["estimates"][estimator]["value"] is None
            else candidate["estimates"][estimator]["value"]
            for name, candidate in of.items()
        }
        ranked = sorted(of, key=lambda name: -value[name])
        report["ranking"][estimator] = ranked
        worth = [of[name]["truth"] if true else of[name]["estimates"][estimator]["value"] for name in ranked]
        best_of_all = max((x for x in worth if x is not None), default=None)
        report["portfolio"][estimator] = {
            str(k): _portfolio(worth[:k], baseline, best_of_all) for k in report["settings"]["k"]
        }


def full_report(
    candidates: int = 5,
    estimators: int = 6,
    *,
    truth: bool = True,
    refusals: bool = True,
    continuous: bool = False,
    seed: int = 0,
) -> dict:
    """Everything that a report can hold, with numbers that hardly ever repeat."""
    rng = np.random.default_rng(seed)
    names = ["ppo_step_40k", "offline-cql", "<script>alert(1)</script>", "cautious & slow", "a|b `c` $d$"]
    names += [f"sweep_{index:02d}" for index in range(len(names), candidates)]
    true = np.sort(rng.normal(1.2, 0.8, candidates))[::-1]
    noise = {"dm": 0.25, "tis": 1.5, "pdis": 0.5, "wis": 0.4}
    of = {}
    for name, value in zip(names[:candidates], true, strict=True):
        of[name] = {}
        for estimator in ESTIMATORS[:estimators]:
            error = noise.get(estimator, 0.15) * rng.uniform(0.6, 1.4)
            size = None if estimator == "dm" else float(rng.uniform(30, 2900))
            given = float(value + error * rng.normal())
            of[name][estimator] = estimate(given, float(error), effective_sample_size=size)
    report = small_report(**of)
    if refusals:
        for name in list(of)[-2:]:
            for estimator in set(of[name]) & {"tis", "pdis", "wpdis"}:
                report["candidates"][name]["estimates"][estimator] = estimate(
                    None, effective_sample_size=float(rng.uniform(1, 9))
                )
        for estimator in set(ESTIMATORS[:estimators]) - {"dm", "drl"}:
            if (of_last := report["candidates"][names[0]]["estimates"][estimator])["value"] is not None:
                of_last["warnings"] = [WARNED]
    for candidate, value in zip(report["candidates"].values(), true, strict=True):
        if truth:
            candidate["truth"] = float(value)
        candidate["distribution"] = _distribution(rng, value)
        candidate["weights"] = _weights(rng, report["log"])
        candidate["findings"] = [
            {
                "code": "clipped",
                "severity": "warning",
                "text": f"{rng.uniform(1, 9):.3f} % of weights are above 100",
            }
        ]
    last = report["candidates"][names[candidates - 1]]
    if refusals:
        last["weights"]["support_violations"] = 0.137
        for of_last in last["estimates"].values():
            if of_last["effective_sample_size"] is not None:
                of_last["no_bound"] = "it does what the log never did"
        last["findings"].append(
            {
                "code": "outside_support",
                "severity": "refusal",
                "text": "gives 13.7 % of its probability to actions that the log's policy never took",
            }
        )
    report["log"]["findings"] = [
        {"code": "truncated", "severity": "warning", "text": "412 episodes were cut off, not ended"}
    ]
    if continuous:
        report["log"] |= {"actions": None, "action_dims": 3, "propensities": "estimated"}
    report["chosen"] = {name: f"auto: suits a horizon of 20 ({name})" for name in ESTIMATORS[:estimators]}
    rank_and_pool(report)
    report["metrics"] = _metrics(rng, report) if truth else None
    report["nuisances"] = {
        "fitted q": {"td_error": 0.0713, "q_range": [-2.113, 6.871], "updates": 4000},
        "visit ratios": {
            "mean_zeta": 1.0027,
            "flow_residual": 0.000319,
            "calibration": {"slope": 0.973, "bias": None},
        },
    }
    return report


def _portfolio(worth: list, baseline: float, best_of_all: float | None) -> dict:
    if any(value is None for value in worth):
        return dict.fromkeys(("best", "worst", "mean", "std", "sharpe_numerator", "sharpe", "regret"))
    gain = max(max(worth) - baseline, 0.0)
    spread = float(np.std(worth, ddof=1)) if len(worth) > 1 else None
    return {
        "best": max(worth),
        "worst": min(worth),
        "mean": float(np.mean(worth)),
        "std": spread,
        "sharpe_numerator": gain,
        "sharpe": None
        if spread is None
        else 0.0
        if gain == 0
        else min(gain / spread, 100.0)
        if spread
        else 100.0,
        "regret": best_of_all - max(worth),
    }


def _distribution(rng: np.random.Generator, mean: float) -> dict:
    returns = np.sort(rng.normal(mean, 2.6, 200))
    mass = rng.dirichlet(np.ones(200)) * 0.97
    return {
        "estimator": "sntis",
        "mean": float(mean + 0.0371),
        "variance": float(rng.uniform(5, 9)),
        "quantiles": {level: float(np.quantile(returns, float(level))) for level in ("0.05", "0.5", "0.95")},
        "cvar": {"0.1": float(returns[:20].mean())},
        "missing_mass": 0.03,
        "returns": returns.tolist(),
        "probability": np.cumsum(mass).tolist(),
    }


def _weights(rng: np.random.Generator, log: dict) -> dict:
    spread = rng.uniform(0.3, 1.6)
    counts, edges = np.histogram(rng.normal(-spread, spread, log["episodes"]), bins=30)
    steps = np.arange(log["horizon"])
    size = log["episodes"] * np.exp(-0.35 * spread * steps)
    return {
        "log10_edges": edges.tolist(),
        "counts": counts.tolist(),
        "without_weight": int(rng.integers(3, 90)),
        "largest_share": float(rng.uniform(0.01, 0.3)),
        "effective_sample_size_by_step": size.tolist(),
        "steps": steps.tolist(),
        "support_violations": 0.0,
    }


def _metrics(rng: np.random.Generator, report: dict) -> dict:
    ks = [str(k) for k in report["settings"]["k"]]
    return {
        estimator: {
            **{
                key: float(rng.uniform(0.01, 0.9))
                for key in ("mse", "nmse", "rank_correlation", "type_i", "type_ii")
            },
            "regret": {k: report["portfolio"][estimator][k]["regret"] for k in ks},
            "safety_violation": {k: float(rng.uniform(0, 1)) for k in ks},
        }
        for estimator in report["settings"]["estimators"]
    }
