"""The peers' side of benchmarks/evaluation.py, run by the Python of an environment of theirs.

SCOPE-RL 0.2.1 and d3rlpy want numpy 1, causalrl wants numpy 2, so that none of them shares an environment with Peira:

    python -m venv PEER && PEER/bin/pip install torch==2.13.0 scope-rl==0.2.1 'numpy<2' 'pandas<3'
    python -m venv CAUSAL && CAUSAL/bin/pip install torch==2.13.0 causalrl==3.0.0

    PEER/bin/python benchmarks/scope_rl_peer.py TASK GIVEN.npz FOUND.json

What is given are arrays and, as the string `settings`, a JSON object; what is found is a JSON object.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def probabilities(observation: np.ndarray, weight: np.ndarray, exploration: float) -> np.ndarray:
    """The policies of the benchmark: softmax(x W), mixed with a share `exploration` of chance; [rows, actions]."""
    score = observation @ weight
    likely = np.exp(score - score.max(axis=1, keepdims=True))
    actions = weight.shape[1]
    return (1 - exploration) * likely / likely.sum(axis=1, keepdims=True) + exploration / actions


# -- SCOPE-RL ----------------------------------------------------------------------------------------------


def head(name: str, weight: np.ndarray, exploration: float):
    """A policy of the benchmark as SCOPE-RL takes one: probabilities, and the greedy action for d3rlpy's networks."""
    import torch
    from scope_rl.policy import BaseHead

    class Greedy:
        """What d3rlpy's fitted Q evaluation asks of a policy."""

        def predict_best_action(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ torch.from_numpy(weight).float()).argmax(1)

    class Head(BaseHead):
        action_type, impl = "discrete", Greedy()

        def __init__(self):
            self.name = name

        def predict(self, x):
            return (x @ weight).argmax(1)

        def calc_action_choice_probability(self, x):
            return probabilities(x, weight, exploration)

        def calc_pscore_given_action(self, x, action):
            return self.calc_action_choice_probability(x)[np.arange(len(x)), action]

        def sample_action_and_output_pscore(self, x):
            raise NotImplementedError("the log is given")

    # Some methods that the base class leaves open are for training; none of them is called.
    Head.__abstractmethods__ = frozenset()
    return Head()


def logged(given, steps: int) -> dict:
    """A log as SCOPE-RL keeps one. As in those that it collects itself, the last step of every episode is done."""
    rows = len(given["reward"])
    ends = (np.arange(rows) % steps == steps - 1).astype(float)
    discrete = given["action"].ndim == 1
    return {
        "size": rows,
        "n_trajectories": rows // steps,
        "step_per_trajectory": steps,
        "action_type": "discrete" if discrete else "continuous",
        "n_actions": int(given["action"].max()) + 1 if discrete else None,
        "action_dim": None if discrete else given["action"].shape[1],
        "state_dim": given["observation"].shape[1],
        "state": given["observation"],
        "action": given["action"],
        "reward": given["reward"],
        "done": ends,
        "terminal": ends,
        "pscore": given["propensity"],
        "behavior_policy": "behaviour",
        "dataset_id": 0,
    }


def estimators(values: bool = True, ratios: bool = True) -> dict[str, object]:
    """SCOPE-RL's estimators by the names that Peira has for them, as far as these models are fitted."""
    from scope_rl.ope import discrete

    kinds = {
        "tis": discrete.TrajectoryWiseImportanceSampling,
        "wis": discrete.SelfNormalizedTIS,
        "pdis": discrete.PerDecisionImportanceSampling,
        "wpdis": discrete.SelfNormalizedPDIS,
    }
    if values:
        kinds |= {
            "dm": discrete.DirectMethod,
            "dr": discrete.DoublyRobust,
            "wdr": discrete.SelfNormalizedDR,
        }
    if values and ratios:
        kinds |= {
            "mis": discrete.StateActionMarginalIS,
            "wmis": discrete.StateActionMarginalSNIS,
            "mdr": discrete.StateActionMarginalDR,
            "wmdr": discrete.StateActionMarginalSNDR,
        }
    return {name: named(kind, name) for name, kind in kinds.items()}


def named(kind: type, name: str):
    """An estimator of SCOPE-RL under another name than its own."""
    estimator = kind()
    estimator.estimator_name = name
    return estimator


def evaluate(given, settings: dict) -> dict:
    """From log and policies to estimates and intervals, as SCOPE-RL's documentation goes about it; seconds by part."""
    import torch
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.models.q_functions import MeanQFunctionFactory
    from scope_rl.ope import CreateOPEInput, OffPolicyEvaluation
    from scope_rl.ope.input import CreateOPEInput as Input

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    log = logged(given, settings["steps"])
    policies = [
        head(name, weight, float(share))
        for name, weight, share in zip(given["names"], given["weight"], given["exploration"], strict=True)
    ]
    model = None
    if settings.get("hidden"):
        model = {
            "hidden_dim": settings["hidden"][0],
            "fqe": {
                "encoder_factory": VectorEncoderFactory(hidden_units=settings["hidden"]),
                "q_func_factory": MeanQFunctionFactory(),
                "learning_rate": settings["learning_rate"],
                "batch_size": settings["batch"],
            },
        }
    seconds: dict[str, float] = {}

    def timed(label: str, method: str) -> None:
        plain = getattr(Input, method)

        def measured(self, *arguments, **options):
            began = time.perf_counter()
            plain(self, *arguments, **options)
            seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - began

        setattr(Input, method, measured)

    timed("fqe", "build_and_fit_FQE")
    timed("ratios of states and actions", "build_and_fit_state_action_dual_model")
    timed("ratios of states, not used", "build_and_fit_state_dual_model")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # d3rlpy writes its books to where it is run.
        began, spent = time.perf_counter(), time.process_time()
        inputs = CreateOPEInput(model_args=model, gamma=settings["gamma"], device="cpu").obtain_whole_inputs(
            logged_dataset=log,
            evaluation_policies=policies,
            require_value_prediction=settings["values"],
            require_weight_prediction=settings["ratios"],
            k_fold=settings["folds"],
            n_steps=settings["updates"],
            random_state=0,
        )
        seconds["predictions"] = time.perf_counter() - began - sum(seconds.values())
        chosen = list(estimators(settings["values"], settings["ratios"]).values())
        ope = OffPolicyEvaluation(log, chosen)
        start = time.perf_counter()
        values = ope.estimate_policy_value(inputs)
        seconds["estimates"] = time.perf_counter() - start
        start = time.perf_counter()
        limits = ope.estimate_intervals(
            inputs, ci="bootstrap", n_bootstrap_samples=settings["resamples"], random_state=0
        )
        seconds["intervals"] = time.perf_counter() - start
        total, processor = time.perf_counter() - began, time.process_time() - spent
        # The same with the last reward kept, which is not the default.
        kept = OffPolicyEvaluation(log, chosen, disable_reward_after_done=False)
        whole = kept.estimate_policy_value(inputs)
    limit = "95.0% CI ({})"
    return {
        "seconds": {**seconds, "total": total},
        "processor": processor,
        "value": values,
        "value_with_last_reward": whole,
        "interval": {
            name: {
                of.estimator_name: [
                    limits[name][of.estimator_name][limit.format(side)] for side in ("lower", "upper")
                ]
                for of in chosen
            }
            for name in values
        },
    }


def exact(given, settings: dict) -> dict:
    """Estimates on a log that holds every episode as often as it is likely, nuisances and ratios given exactly."""
    from scope_rl.ope import OffPolicyEvaluation, discrete

    log = logged(given, settings["steps"])
    rows = np.arange(log["size"])
    inputs = {
        "candidate": {
            "evaluation_policy_action": None,
            "evaluation_policy_action_dist": given["probs"],
            "state_action_value_prediction": given["q"],
            "initial_state_value_prediction": given["first_value"],
            "state_marginal_importance_weight": given["state_ratio"],
            "state_action_marginal_importance_weight": given["state_ratio"]
            * given["probs"][rows, given["action"]]
            / given["propensity"],
            "on_policy_policy_value": None,
            "gamma": settings["gamma"],
        }
    }
    chosen = {
        **estimators(),
        "mis of states": named(discrete.StateMarginalIS, "mis of states"),
        "drl": named(discrete.DoubleReinforcementLearning, "drl"),
    }
    found = {}
    for label, drops in (("as released", True), ("with the last reward", False)):
        ope = OffPolicyEvaluation(log, list(chosen.values()), disable_reward_after_done=drops)
        found[label] = ope.estimate_policy_value(inputs)["candidate"]
    return found


def kernels(given, settings: dict) -> dict:
    """A deterministic candidate among vectors of numbers, weighed by SCOPE-RL's Gaussian kernel."""
    from scope_rl.ope import OffPolicyEvaluation, continuous

    estimator = named(continuous.PerDecisionImportanceSampling, "pdis")
    target = np.tile(given["target"], (len(given["reward"]), 1))
    inputs = {
        "candidate": {
            "evaluation_policy_action": target,
            "evaluation_policy_action_dist": None,
            "state_action_value_prediction": None,
            "initial_state_value_prediction": None,
            "on_policy_policy_value": None,
            "gamma": 1.0,
        }
    }
    # Its Gaussian policies give one joint density, which its data sets copy into every dimension.
    joint = given["density"].prod(axis=1, keepdims=True)
    width = {"bandwidth": settings["bandwidth"], "disable_reward_after_done": False}
    found = {}
    for label, density in (
        ("as released", np.tile(joint, (1, given["density"].shape[1]))),
        ("densities put right", given["density"]),
    ):
        log = logged({**given, "propensity": density}, 1)
        ope = OffPolicyEvaluation(log, [estimator], **width)
        found[label] = ope.estimate_policy_value(inputs)["candidate"]["pdis"]
    found["densities and whole numbers put right"] = estimator.estimate_policy_value(
        step_per_trajectory=1,
        action=given["action"],
        reward=given["reward"],
        pscore=given["density"],
        evaluation_policy_action=target,
        gamma=1.0,
        bandwidth=settings["bandwidth"],
        action_scaler=None,
    )
    return found


def coverage(given, settings: dict) -> dict:
    """Share of samples [samples, episodes] whose interval holds the mean, by method, and the mean width."""
    from scope_rl import utils

    methods = {
        "t": utils.estimate_confidence_interval_by_t_test,
        "bootstrap": utils.estimate_confidence_interval_by_bootstrap,
        "bernstein": utils.estimate_confidence_interval_by_empirical_bernstein,
        "hoeffding": utils.estimate_confidence_interval_by_hoeffding,
    }
    found = {}
    for case, of_case in settings["cases"].items():
        options = {"n_bootstrap_samples": of_case["resamples"], "random_state": 0}
        limits = []
        for sample in given[case]:
            found_here = methods[of_case["method"]](sample, alpha=0.05, **options)
            limits.append([found_here["95.0% CI (lower)"], found_here["95.0% CI (upper)"]])
        low, high = np.array(limits).T
        inside = (low <= of_case["truth"]) & (of_case["truth"] <= high)
        found[case] = {"coverage": float(inside.mean()), "width": float((high - low).mean())}
    return found


# -- d3rlpy ------------------------------------------------------------------------------------------------


def d3rlpy_fqe(given, settings: dict) -> dict:
    """d3rlpy's own fitted Q evaluation of one candidate: seconds, and the mean value of the first greedy action."""
    import torch
    from d3rlpy.dataset import MDPDataset
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.ope import DiscreteFQE, FQEConfig

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    log = logged(given, settings["steps"])
    policy = head("candidate", given["weight"][0], float(given["exploration"][0]))
    config = FQEConfig(
        gamma=settings["gamma"],
        encoder_factory=VectorEncoderFactory(hidden_units=settings["hidden"]),
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch"],
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dataset = MDPDataset(
            observations=log["state"], actions=log["action"], rewards=log["reward"], terminals=log["done"]
        )
        fqe = DiscreteFQE(algo=policy, config=config, device=False)
        began, spent = time.perf_counter(), time.process_time()
        fqe.fit(dataset, n_steps=settings["updates"], n_steps_per_epoch=settings["updates"])
        seconds, processor = time.perf_counter() - began, time.process_time() - spent
    first = log["state"][:: settings["steps"]]
    value = float(fqe.predict_value(first, policy.predict(first)).mean())
    return {"seconds": seconds, "processor": processor, "value": value}


# -- causalrl ----------------------------------------------------------------------------------------------


def causalrl(given, settings: dict) -> dict:
    """What causalrl has for known propensities (one step) and for several steps (two actions, one action a state)."""
    from causalrl.ope import estimate_sequential_value, ipw_value

    columns = [given[name].tolist() for name in ("action", "reward", "propensity", "target_propensity")]
    began = time.perf_counter()
    value = ipw_value(*columns)
    found = {"ipw": {"value": value, "seconds": time.perf_counter() - began}}
    states, actions = given["states"], given["actions"]
    for method in ("gcomp", "dr"):
        began = time.perf_counter()
        of = estimate_sequential_value(
            list(states.T), list(actions.T), list(np.ones_like(actions).T), given["returns"], method=method
        )
        found[method] = {
            "value": of.value,
            "standard_error": of.std_error,
            "seconds": time.perf_counter() - began,
        }
    return found


TASKS = {task.__name__: task for task in (evaluate, exact, kernels, coverage, d3rlpy_fqe, causalrl)}


def main() -> None:
    task, given = sys.argv[1:3]
    found = Path(sys.argv[3]).resolve()  # Some tasks go elsewhere.

    arrays = dict(np.load(given))
    settings = json.loads(str(arrays.pop("settings")))
    result = TASKS[task](arrays, settings)
    names = ("scope-rl", "d3rlpy", "causalrl", "torch", "numpy", "pandas", "scipy", "scikit-learn", "gym")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in names if name in installed}
    found.write_text(json.dumps({**result, "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
