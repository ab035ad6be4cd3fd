"""A rollout records what happened, in order, with the probabilities under which it happened."""

import numpy as np
import pytest
import torch

from peira.environments.control import make_control
from peira.experience.batch import SOURCE_CODES
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.sources.rollout import rollout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def world(id="CartPole-v1", num_envs=3, seed=0):
    env = make_control(id, num_envs, seed)
    env.reset()
    kind = CategoricalActorCritic if env.discrete else GaussianActorCritic
    policy = kind(env.observation_size, env.action_size, hidden=(8,), generator=generator(1))
    policy.normaliser.update(torch.randn(50, env.observation_size, generator=generator(2)))
    return env, policy


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "peira/TwoStep-v0"])
def test_log_probs_are_those_of_the_policy_that_acted(id):
    env, policy = world(id)
    batch = rollout(env, policy, 40, generator(), gathered_for=7)
    expected = policy.distribution(batch.observation).log_prob(batch.action)
    torch.testing.assert_close(batch.behaviour_log_prob, expected.detach())
    assert not batch.behaviour_log_prob.requires_grad
    assert batch.steps == 120
    assert batch.policy_version.unique().tolist() == [7]
    assert batch.source.unique().tolist() == [SOURCE_CODES["real"]]


def test_the_batch_is_what_the_environment_gave_for_these_actions():
    env, policy = world("CartPole-v1")
    batch = rollout(env, policy, 60, generator(), gathered_for=0)
    again = make_control("CartPole-v1", 3, 0)
    observation, _ = again.reset()
    ended = 0
    for time in range(60):
        np.testing.assert_array_equal(batch.observation[time].numpy(), observation)
        observation, reward, terminated, truncated, info = again.step(batch.action[time].numpy())
        np.testing.assert_array_equal(batch.reward[time].numpy(), reward)
        np.testing.assert_array_equal(batch.terminated[time].numpy(), terminated)
        np.testing.assert_array_equal(batch.truncated[time].numpy(), truncated)
        np.testing.assert_array_equal(
            batch.next_observation[time].numpy(), info.get("final_obs", observation)
        )
        ended += (terminated | truncated).sum()
    assert ended > 3


def test_where_an_episode_ended_the_next_observation_is_its_end_not_the_next_start():
    env, policy = world("CartPole-v1")
    batch = rollout(env, policy, 60, generator(), gathered_for=0)
    time, copy = torch.nonzero(batch.done[:-1], as_tuple=True)
    ends, starts = batch.next_observation[time, copy], batch.observation[time + 1, copy]
    assert (starts.abs() <= 0.05).all()
    assert ((ends[:, 0].abs() > 2.4) | (ends[:, 2].abs() > 0.2094)).all()
    running = ~batch.done[:-1]
    assert torch.equal(batch.next_observation[:-1][running], batch.observation[1:][running])


def test_truncation_is_recorded_as_such():
    env, policy = world("Pendulum-v1", 2)
    batch = rollout(env, policy, 201, generator(), gathered_for=0)
    assert batch.truncated[199].all()
    assert batch.truncated.sum() == 2
    assert not batch.terminated.any()


def test_two_rollouts_go_on_where_the_first_stopped():
    env, policy = world("CartPole-v1")
    draws = generator(3)
    halves = [rollout(env, policy, steps, draws, gathered_for=0) for steps in (25, 35)]
    env, policy = world("CartPole-v1")
    whole = rollout(env, policy, 60, generator(3), gathered_for=0)
    for name, column in whole.columns().items():
        joined = torch.cat([getattr(half, name) for half in halves])
        torch.testing.assert_close(joined, column, rtol=1e-6, atol=1e-6)


def test_seeds_of_environment_and_actions_decide_everything():
    def gather(environment_seed, action_seed):
        env, policy = world("CartPole-v1", seed=environment_seed)
        return rollout(env, policy, 30, generator(action_seed), gathered_for=0)

    one, same = gather(0, 5), gather(0, 5)
    for name, column in one.columns().items():
        assert torch.equal(column, getattr(same, name))
    assert not torch.equal(one.action, gather(0, 6).action)
    assert not torch.equal(one.observation[0], gather(100, 5).observation[0])


def test_the_batch_is_not_touched_by_later_steps():
    env, policy = world("CartPole-v1")
    batch = rollout(env, policy, 20, generator(), gathered_for=0)
    before = {name: column.clone() for name, column in batch.columns().items()}
    rollout(env, policy, 20, generator(), gathered_for=0)
    for name, column in batch.columns().items():
        assert torch.equal(column, before[name])


def test_actions_are_kept_as_sampled_not_as_executed():
    env, policy = world("Pendulum-v1", 2)
    with torch.no_grad():
        policy.log_std.fill_(2.0)
    batch = rollout(env, policy, 20, generator(), gathered_for=0)
    assert batch.action.abs().max() > 2
