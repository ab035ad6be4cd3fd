"""Candidates from tables, policies, functions and arrays: the same probabilities in the order of the log."""

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import multivariate_normal

from peira.evaluation.off_policy import candidates as module
from peira.evaluation.off_policy import tables
from peira.evaluation.off_policy.candidates import (
    Candidate,
    behaviour_candidate,
    candidate_of,
    read_candidate,
    same_actions,
)
from peira.evaluation.off_policy.log import Log
from peira.experience import exchange
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic

LENGTHS = np.array([2, 3, 1])
PROBS = np.array(
    [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]]
)
FINAL = np.array([[0.9, 0.05, 0.05]])


def discrete_log(**changes) -> Log:
    arrays = {
        "action": np.array([0, 1, 2, 1, 0, 1]),
        "reward": np.arange(6.0),
        "length": LENGTHS,
        "truncated": np.array([False, True, False]),
        "propensity": np.array([0.5, 0.25, 0.125, 0.5, 0.25, 1.0]),
        "observation": np.arange(12.0).reshape(6, 2),
        "final_observation": np.array([[20.0, 21.0]]),
        "episode_id": ["b", "a", "c"],
    }
    return Log.from_arrays(**{**arrays, **changes})


def continuous_log(rng: np.random.Generator) -> Log:
    action = rng.normal(size=(6, 2))
    return discrete_log(action=action, propensity=rng.uniform(0.1, 2, 6))


def table_of(probs=PROBS, final=None) -> pa.Table:
    columns = {
        "episode_id": ["b", "b", "a", "a", "a", "c"],
        "step": [0, 1, 0, 1, 2, 0],
        "action_probs": probs.tolist() if isinstance(probs, np.ndarray) else probs,
    }
    if final is not None:
        columns["episode_id"].append("a")
        columns["step"].append(3)
        columns["action_probs"].append(final[0].tolist())
    return pa.table(columns)


def written(tmp_path: Path, table: pa.Table, name: str = "new.parquet") -> Path:
    pq.write_table(table, tmp_path / name)
    return tmp_path / name


def message(call, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is_the_candidate(candidate: Candidate, final: bool) -> None:
    np.testing.assert_array_equal(candidate.probs, PROBS)
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(candidate.log_prob, np.log([0.1, 0.3, 0.25, 1.0, 0.2, 0.3]))
    np.testing.assert_array_equal(candidate.final_probs, FINAL if final else None)


def test_a_table_in_every_format(tmp_path):
    log = discrete_log()
    candidate = read_candidate(written(tmp_path, table_of()), log)
    assert candidate.name == "new"
    assert_is_the_candidate(candidate, final=False)

    table = table_of(final=FINAL)
    assert_is_the_candidate(read_candidate(written(tmp_path, table), log), final=True)
    lance.write_dataset(table, tmp_path / "stored.lance")
    assert read_candidate(tmp_path / "stored.lance", log).name == "stored"
    assert_is_the_candidate(read_candidate(tmp_path / "stored.lance", log), final=True)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    assert_is_the_candidate(read_candidate(lines, log), final=True)
    text = [json.dumps(row) for row in table["action_probs"].to_pylist()]
    csv.write_csv(table.set_column(2, "action_probs", pa.array(text)), tmp_path / "text.csv")
    assert_is_the_candidate(read_candidate(tmp_path / "text.csv", log), final=True)
    wide = {f"action_probs_{a}": np.concatenate([PROBS, FINAL])[:, a] for a in range(3)}
    names = {"episode_id": table["episode_id"], "step": table["step"]}
    csv.write_csv(pa.table({**names, **wide}), tmp_path / "wide.csv")
    candidate = read_candidate(tmp_path / "wide.csv", log, name="renamed")
    assert candidate.name == "renamed"
    assert_is_the_candidate(candidate, final=True)


@pytest.mark.parametrize(("bytes_at_once", "rows_at_once"), [(1, 1), (1 << 27, 65_536)])
def test_rows_are_found_by_episode_and_step(tmp_path, monkeypatch, bytes_at_once, rows_at_once):
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", bytes_at_once)
    monkeypatch.setattr(exchange, "_ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows_at_once)
    log = discrete_log()
    table = table_of(final=FINAL)
    strange = pa.table({"episode_id": ["z", "b", "c"], "step": [0, 2, 1], "action_probs": [[9.0] * 3] * 3})
    rng = np.random.default_rng(0)
    for trial in range(5):
        order = rng.permutation(len(table))
        folder = tmp_path / f"parts {trial}"
        folder.mkdir()
        pq.write_table(strange, folder / "0.parquet")
        pq.write_table(table.take(pa.array(order[:4])), folder / "1.parquet")
        pq.write_table(table.take(pa.array(order[4:])), folder / "2.parquet")
        assert_is_the_candidate(read_candidate(folder, log), final=True)
    # Episodes in the order of the log, steps not.
    swapped = table_of().take(pa.array([1, 0, 4, 2, 3, 5]))
    assert_is_the_candidate(read_candidate(written(tmp_path, swapped), log), final=False)
    # Where no final observation was recorded a step behind the last one is nowhere, not in the next episode.
    blind = discrete_log(final_observation=None)
    assert_is_the_candidate(read_candidate(folder, blind), final=False)
    twice = pa.concat_tables([table_of(), table_of().slice(1, 1)])
    assert message(read_candidate, written(tmp_path, twice), log) == (
        "step: candidate new has episode b, step 1 twice; give every step once"
    )


def test_importance_weights_need_no_more_than_the_logged_action(tmp_path):
    log = discrete_log()
    path = written(tmp_path, table_of(final=FINAL))
    whole, slim = read_candidate(path, log), read_candidate(path, log, keep_probs=False)
    assert slim.probs is None and slim.final_probs is None
    np.testing.assert_array_equal(slim.log_ratio(log), whole.log_ratio(log))
    np.testing.assert_array_equal(slim.support.action, whole.support.action)
    assert message(slim.point_probs, log) == (
        "candidate new: the probabilities of all actions are not known or were not kept"
    )


def test_log_ratios_are_differences_of_logarithms():
    log = discrete_log()
    candidate = candidate_of(np.where(np.arange(3) == 0, 1.0, 0.0) * np.ones((6, 1)), log, "first")
    np.testing.assert_array_equal(
        candidate.log_ratio(log), [np.log(2), -np.inf, -np.inf, -np.inf, np.log(4), -np.inf]
    )
    silent = discrete_log(propensity=None)
    assert message(candidate.log_ratio, silent) == (
        "propensity: the log has neither propensity nor behaviour_log_prob, which importance weights divide by; log "
        "them, or estimate them from the log"
    )


def test_points_go_on_with_final_observations():
    log = discrete_log()
    whole = candidate_of(np.concatenate([PROBS, FINAL]), log, "whole")
    assert_is_the_candidate(whole, final=True)
    np.testing.assert_array_equal(whole.point_probs(log), np.concatenate([PROBS, FINAL]))
    assert message(candidate_of(PROBS, log, "rows").point_probs, log) == (
        "candidate rows: what it does at final observations is not known; give a row for step 3 of episode a and "
        "likewise for the other truncated episodes"
    )
    without = discrete_log(final_observation=None)
    np.testing.assert_array_equal(candidate_of(PROBS, without, "rows").point_probs(without), PROBS)


def test_a_categorical_actor_critic_says_what_it_would_have_done():
    log = discrete_log()
    policy = CategoricalActorCritic(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.actor_head.weight.mul_(300)
    candidate = candidate_of(policy, log, "policy")
    expected = policy.log_prob(
        torch.as_tensor(log.observation, dtype=torch.float32), torch.as_tensor(log.action)
    )
    np.testing.assert_allclose(candidate.log_prob, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(candidate.probs.sum(axis=1), 1.0, rtol=1e-14)
    assert candidate.point_probs(log).shape == (7, 3)
    assert np.ptp(candidate.probs, axis=0).max() > 0.01


def test_a_tabular_actor_critic_reads_numbers_of_states():
    log = discrete_log(observation=np.array([0, 2, 1, 1, 0, 2]), final_observation=np.array([2]))
    policy = CategoricalActorCritic(3, 3, hidden=(), normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 0.0, 1.0]]))
    candidate = candidate_of(policy, log, "tabular")
    logits = policy.actor_head.weight.detach().numpy().T[log.observation].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(candidate.probs, expected, rtol=1e-6)
    small = CategoricalActorCritic(2, 3, hidden=())
    assert message(candidate_of, small, log, "small") == (
        "observation: expected states 0 … 1 for candidate small, came 0 … 2"
    )
    wide = CategoricalActorCritic(5, 3)
    assert message(candidate_of, wide, discrete_log(), "wide") == (
        "observation: candidate wide reads 5 numbers, the log has 2"
    )


def test_a_gaussian_actor_critic_and_a_table_of_means_agree(tmp_path):
    log = continuous_log(np.random.default_rng(0))
    policy = GaussianActorCritic(2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.actor_head.weight.mul_(100)
        policy.log_std.copy_(torch.tensor([-0.5, 0.25]))
    candidate = candidate_of(policy, log, "gauss")
    expected = policy.log_prob(torch.tensor(log.observation).float(), torch.tensor(log.action).float())
    np.testing.assert_allclose(candidate.log_prob, expected.detach().numpy(), rtol=1e-5)
    density = [
        multivariate_normal(m, np.diag(s**2)).logpdf(a)
        for m, s, a in zip(candidate.mean, candidate.std, log.action, strict=True)
    ]
    np.testing.assert_allclose(candidate.log_prob, density, rtol=1e-12)
    mean, std = candidate.point_gaussian(log)
    assert mean.shape == std.shape == (7, 2)

    rows = table_of().drop_columns("action_probs")
    table = rows.append_column("action_mean", pa.array(candidate.mean.tolist()))
    path = written(tmp_path, table.append_column("action_std", pa.array(candidate.std.tolist())))
    read = read_candidate(path, log)
    np.testing.assert_allclose(read.log_prob, candidate.log_prob, rtol=1e-14)
    assert read.probs is None and read.support is None
    assert message(read.point_probs, log) == (
        "candidate new: the probabilities of all actions are not known or were not kept"
    )


def test_a_deterministic_candidate_has_no_density():
    log = continuous_log(np.random.default_rng(0))
    candidate = candidate_of((np.zeros((6, 2)), np.zeros((6, 2))), log, "still")
    assert candidate.log_prob is None
    assert message(candidate.log_ratio, log) == (
        "candidate still is deterministic among continuous actions and has no density; use the kernel estimators, or "
        "give action_std above 0"
    )


def test_a_function_is_asked_in_batches(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 4)
    log = discrete_log()
    asked = []

    def policy(observation: np.ndarray) -> np.ndarray:
        asked.append(observation)
        logits = observation[:, :1] * np.array([[0.0, 0.1, -0.1]])
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    candidate = candidate_of(policy, log, "function")
    assert [len(batch) for batch in asked] == [4, 2, 1]
    np.testing.assert_allclose(candidate.probs, policy(log.observation), rtol=1e-15)
    np.testing.assert_allclose(candidate.final_probs, policy(log.final_observation), rtol=1e-15)
    assert message(candidate_of, lambda observation: np.ones(3) / 3, log, "one") == (
        "candidate one: expected probabilities of shape (4, actions) for a batch of 4 observations, came (3,); the "
        "function is called with batches"
    )
    blind = discrete_log(observation=None, final_observation=None)
    assert message(candidate_of, policy, blind, "function") == (
        "observation: the log has no column of that name, and candidate function acts on observations"
    )


class LanguagePolicy(torch.nn.Module):
    """Stands for any network whose actions are not the log's."""


def test_language_policies_are_refused():
    assert message(candidate_of, LanguagePolicy(), discrete_log(), "words") == (
        "candidate words: expected an actor-critic, a function of observations or arrays, came LanguagePolicy; "
        "language policies cannot be evaluated so, another network goes into a function"
    )


def test_the_policy_of_the_log_weighs_nothing():
    log = discrete_log()
    candidate = behaviour_candidate(log)
    assert candidate.name == "behaviour"
    np.testing.assert_array_equal(candidate.log_ratio(log), np.zeros(6))
    assert message(behaviour_candidate, discrete_log(propensity=None)).startswith(
        "propensity: the log has neither"
    )


def test_candidates_may_know_of_more_actions_than_the_log():
    log = discrete_log()
    wide = np.pad(PROBS * 0.75, ((0, 0), (0, 1)), constant_values=0.25)
    candidate = candidate_of(wide, log, "wide")
    assert same_actions(log, [candidate, candidate]).actions == 4
    assert same_actions(log, [behaviour_candidate(log)]) is log
    assert candidate.support.never_chosen == pytest.approx(6 * 0.25)
    narrow = candidate_of(PROBS, log, "narrow")
    assert message(same_actions, log, [candidate, narrow]) == (
        "action_probs: candidate narrow has 3 actions a row and candidate wide 4; give every candidate the same actions"
    )


def test_support_counts_probability_where_the_log_is_silent():
    chances = np.array([[0.5, 0.5, 0.0]] * 5 + [[0.0, 1.0, 0.0]])
    log = discrete_log(
        action=np.array([0, 1, 0, 1, 0, 1]),
        propensity=None,
        behaviour_probs=chances,
        action_set=np.array([[1, 1, 1]] * 4 + [[1, 1, 0], [1, 1, 1]], bool),
    )
    support = candidate_of(PROBS, log, "new").support
    np.testing.assert_allclose(support.action, PROBS.sum(axis=0))
    assert support.never_chosen == pytest.approx(PROBS[:, 2].sum())
    assert support.impossible == pytest.approx(PROBS[:, 2].sum() + PROBS[5, 0])
    assert support.outside_set == pytest.approx(0.6)
    assert support.outside_row == 4
    assert candidate_of(PROBS, discrete_log(), "new").support.impossible is None


def broken(row: int, value) -> list:
    return [value if place == row else probs for place, probs in enumerate(PROBS.tolist())]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            table_of().slice(0, 4),
            "candidate new: no row for episode a, step 2, 2 of 6 rows are missing; give one for every step of the log",
        ),
        (
            table_of(broken(3, [0.5, 0.5, 0.25])),
            "candidate new: action_probs: expected probabilities that sum to 1, came a sum of 1.25 in episode a, "
            "step 1; give one for every action, with at least six digits",
        ),
        (
            table_of(broken(1, [-0.5, 1.0, 0.5])),
            "candidate new: action_probs: expected probabilities, came -0.5 in episode b, step 1; none is below 0 or "
            "missing",
        ),
        (
            table_of(broken(5, None)),
            "candidate new: action_probs: expected probabilities, came nan in episode c, step 0; none is below 0 or "
            "missing",
        ),
        (
            table_of(broken(2, [0.5, 0.5])),
            "candidate new: action_probs: expected 3 numbers as in other rows, came 2 in episode a, step 0; give every "
            "row the same number of them",
        ),
        (
            table_of(PROBS[:, :2] / PROBS[:, :2].sum(axis=1, keepdims=True)),
            "action: 2 in episode a, step 0 is out of range, candidate new has probabilities of actions 0 … 1; give "
            "one for every action",
        ),
        (
            pa.concat_tables([table_of(), table_of().slice(4, 1)]),
            "step: candidate new has episode a, step 2 twice; give every step once",
        ),
        (
            table_of().drop_columns("action_probs"),
            "action_probs: candidate new has no such column; give the probability of every action, or action_mean and "
            "action_std where actions are continuous",
        ),
        (
            table_of().drop_columns("step"),
            "step: candidate new has no such column; a row is found by episode and step",
        ),
        (
            table_of()
            .append_column("action_mean", pa.array([0.0] * 6))
            .append_column("action_std", pa.array([1.0] * 6))
            .drop_columns("action_probs"),
            "candidate new: action_mean: the log's actions are numbers 0 … 2; give action_probs",
        ),
    ],
    ids=["lacks rows", "sum", "negative", "null", "ragged", "range", "twice", "no probs", "no step", "means"],
)
def test_bad_tables_are_named_in_one_line(tmp_path, table, expected):
    assert message(read_candidate, written(tmp_path, table), discrete_log()) == expected


def test_fewer_probabilities_than_the_log_has_actions(tmp_path):
    log = discrete_log().with_actions(5)
    assert message(read_candidate, written(tmp_path, table_of()), log) == (
        "candidate new: action_probs: expected 5 probabilities a row, one for every action of the log, came 3"
    )


def test_bad_means_and_deviations(tmp_path):
    log = continuous_log(np.random.default_rng(0))
    rows = table_of().drop_columns("action_probs")

    def read(mean: list, std: list) -> str:
        table = rows.append_column("action_mean", pa.array(mean)).append_column("action_std", pa.array(std))
        return message(read_candidate, written(tmp_path, table), log)

    zero, one = [[0.0, 0.0]] * 6, [[1.0, 1.0]] * 6
    assert read(zero, [*one[:2], [1.0, -1.0], *one[:3]]) == (
        "candidate new: action_std: expected finite numbers, none below 0, came [1.0, -1.0] in episode a, step 0; a "
        "deterministic action has deviation 0"
    )
    assert read([0.0] * 6, one) == "candidate new: action_mean: expected 2 numbers a row, came 1"
    assert message(read_candidate, written(tmp_path, table_of()), log) == (
        "candidate new: action_probs: the log's actions are vectors; give action_mean and action_std"
    )


def test_arrays_that_do_not_fit_the_log():
    log = discrete_log()
    assert message(candidate_of, PROBS[:5], log, "short") == (
        "candidate short: expected shape (6, actions), or (7, actions) with the final observations, came (5, 3)"
    )
    assert message(candidate_of, PROBS * 0.5, log, "half") == (
        "candidate half: action_probs: expected probabilities that sum to 1, came a sum of 0.5 in episode b, step 0; "
        "give one for every action, with at least six digits"
    )
    assert message(candidate_of, (PROBS, PROBS), log, "means") == (
        "candidate means: the log's actions are numbers 0 … 2; give their probabilities"
    )


def test_decisions_without_names_are_matched_in_order(tmp_path):
    log = Log.from_arrays(
        action=np.array([0, 1, 1]), reward=np.zeros(3), length=np.ones(3, int), propensity=np.full(3, 0.5)
    )
    table = pa.table({"action_probs": [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]})
    candidate = read_candidate(written(tmp_path, table), log)
    np.testing.assert_array_equal(candidate.log_prob, [np.log(0.25), np.log(0.5), -np.inf])
    with pytest.raises(ValueError, match=r"no row for episode 2, step 0, 1 of 3 rows are missing"):
        read_candidate(written(tmp_path, table.slice(0, 2)), log)
    named = table.append_column("episode_id", pa.array([2, 1, 0]))
    np.testing.assert_array_equal(
        read_candidate(written(tmp_path, named), log).log_prob, [0.0, np.log(0.5), np.log(0.75)]
    )
