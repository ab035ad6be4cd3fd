import dataclasses

import numpy as np
import pytest
import torch

from peira.experience.batch import Batch
from peira.experience.exchange import export
from peira.experience.store import Store
from peira.experience.transitions import read_transitions
from peira.policies.continuous import TanhGaussianActor
from peira.policies.files import load_policy, save_policy
from peira.recipes.make_log import Options, _Training, chosen, make_log, steps_of

QUIET = {"say": lambda line: None}
TINY = Options(
    env="Pendulum-v1",
    steps=480,
    train_steps=480,
    hidden=(8,),
    evaluations=4,
    evaluation_episodes=2,
    updates_per_step=0.05,
    compiled=False,
)


def options(**changes) -> Options:
    return dataclasses.replace(TINY, **changes)


def test_a_random_log_is_uniform_and_says_so(tmp_path):
    result = make_log(tmp_path / "log", options(policy="random"), **QUIET)
    assert (result["steps"], result["policy_id"]) == (480, "uniform")
    table = Store.open(tmp_path / "log").read()
    assert set(table["source"].to_pylist()) == {"logged"}
    np.testing.assert_allclose(table["behaviour_log_prob"], np.log(1 / 4), rtol=1e-5)
    log = read_transitions(tmp_path / "log")
    assert log.action.abs().max() <= 2 and log.action.std().item() == pytest.approx(4 / 12**0.5, rel=0.1)
    assert log.truncated.sum() == log.episodes == 8
    assert load_policy(tmp_path / "log" / "policy").id == "uniform"


def test_every_propensity_is_the_density_of_the_policy_that_is_saved_beside_the_log(tmp_path):
    result = make_log(tmp_path / "log", options(policy="expert"), **QUIET)
    table, log = Store.open(tmp_path / "log").read(), read_transitions(tmp_path / "log")
    policy = load_policy(tmp_path / "log" / "policy")
    assert isinstance(policy, TanhGaussianActor)
    expected = policy.log_prob(log.observation, log.action).detach()
    np.testing.assert_allclose(table["behaviour_log_prob"], expected, atol=1e-4)
    assert set(table["policy_version"].to_pylist()) == {policy.version} and policy.version > 0
    assert set(table["policy_id"].to_pylist()) == {policy.id} == {result["policy_id"]}
    assert result["mean_return"] == pytest.approx(log.returns().mean().item(), rel=1e-4)


def test_a_replay_log_holds_many_versions_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("peira.recipes.make_log._random_return", lambda options: -1e9)
    make_log(tmp_path / "log", options(policy="medium-replay", share=1.0), **QUIET)
    table = Store.open(tmp_path / "log").read()
    assert table.num_rows == 480
    versions = np.array(table["policy_version"].to_pylist())
    assert len(np.unique(versions)) > 3 and versions.min() == 0
    ids = np.array(table["episode_id"].to_pylist())
    for episode in np.unique(ids):
        assert (np.diff(versions[ids == episode]) >= 0).all()
    assert np.isfinite(table["behaviour_log_prob"].to_numpy()).all()


def test_a_training_that_came_to_nothing_leaves_no_log(tmp_path, monkeypatch):
    monkeypatch.setattr("peira.recipes.make_log._random_return", lambda options: 1e9)
    with pytest.raises(
        ValueError, match=r"train_steps: the final return is .* after 480, a random policy's 1e"
    ):
        make_log(tmp_path / "log", options(policy="medium"), **QUIET)
    assert not (tmp_path / "log" / "experience.lance").exists()


def test_medium_is_the_policy_nearest_to_a_third_of_the_way():
    training = _Training([None] * 4, [-1000.0, -900.0, -500.0, -100.0], [1, 2, 3, 4], [])
    assert chosen(options(policy="medium"), training, -1000.0) == 1  # A third of the way to −100 is −700.
    assert chosen(options(policy="medium", share=0.5), training, -1000.0) == 2
    assert chosen(options(policy="medium", final_return=200.0, share=0.5), training, -1000.0) == 2
    assert chosen(options(policy="expert"), training, -1000.0) == 3
    with pytest.raises(ValueError, match="the best return is -100, medium means 500; train for longer"):
        chosen(options(policy="medium", final_return=2000.0, share=0.5), training, -1000.0)


def test_a_saved_policy_acts_instead_of_one_trained_here(tmp_path):
    policy = TanhGaussianActor(
        3, 1, low=[-2.0], high=[2.0], hidden=(8,), generator=torch.Generator().manual_seed(0)
    )
    policy.id, policy.version = "mine", 5
    save_policy(policy, tmp_path / "policy")
    result = make_log(tmp_path / "log", options(load=str(tmp_path / "policy")), **QUIET)
    assert result["policy_id"] == "mine"
    wrong = TanhGaussianActor(4, 1, low=[-2.0], high=[2.0], hidden=(8,))
    save_policy(wrong, tmp_path / "wrong")
    with pytest.raises(ValueError, match="has observation_size 4, Pendulum-v1 needs 3"):
        make_log(tmp_path / "other", options(load=str(tmp_path / "wrong")), **QUIET)


@pytest.mark.parametrize("env", ["Pendulum-v1", "peira/UMaze-v0"])
def test_a_scripted_log_goes_to_minari_and_back(tmp_path, env):
    make_log(tmp_path / "log", options(env=env, policy="scripted"), **QUIET)
    export(Store.open(tmp_path / "log"), tmp_path / "minari", "minari")
    log, back = read_transitions(tmp_path / "log"), read_transitions(tmp_path / "minari")
    assert log.rows == 600 and torch.equal(log.next_observation, back.next_observation)


def test_episodes_still_running_are_cut_where_the_log_ends():
    shape = (3, 2)
    batch = Batch(
        observation=torch.arange(6.0).reshape(3, 2, 1),
        action=torch.zeros(3, 2, 1),
        reward=torch.ones(shape),
        terminated=torch.tensor([[False, False], [True, False], [False, True]]),
        truncated=torch.zeros(shape, dtype=torch.bool),
        next_observation=torch.arange(6.0).reshape(3, 2, 1) + 10,
        behaviour_log_prob=torch.zeros(shape),
        policy_version=torch.zeros(shape, dtype=torch.int64),
        source=torch.zeros(shape, dtype=torch.int64),
    )
    table = steps_of(batch, "p", "e", "run")
    assert table["truncated"].to_pylist() == [False, False, True, False, False, False]
    assert table["terminated"].to_pylist() == [False, True, False, False, False, True]
    assert table["final_observation"].to_pylist()[2] == [14.0]


def test_bad_orders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="env: CartPole-v1 has 2 discrete actions"):
        make_log(tmp_path / "log", options(env="CartPole-v1", policy="random"), **QUIET)
    make_log(tmp_path / "log", options(policy="random"), **QUIET)
    with pytest.raises(ValueError, match="holds 480 steps already; name a new folder"):
        make_log(tmp_path / "log", options(policy="random"), **QUIET)
    with pytest.raises(ValueError, match="policy: scripted ones are known for Pendulum-v1, peira/UMaze-v0"):
        options(env="Hopper-v5", policy="scripted")
    with pytest.raises(ValueError, match="load: a random log has no policy to load"):
        options(policy="random", load="somewhere")
    with pytest.raises(ValueError, match="share: expected 0 to 1, got 2"):
        options(share=2.0)
