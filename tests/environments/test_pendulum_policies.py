import gymnasium
import numpy as np
import pytest
import torch

from peira.environments.pendulum_policies import (
    HORIZON,
    behave,
    behaviour_log_prob,
    learned_target,
    pendulum_log,
    step_pendulum,
    swing_up,
    swing_up_target,
)
from peira.experience.schema import validate
from peira.experience.transitions import from_table


def states(number: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, number)
    return np.stack([np.cos(angle), np.sin(angle), rng.uniform(-8, 8, number)], 1)


def test_the_exact_step_is_the_simulators():
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    seen, action = states(200), np.random.default_rng(1).uniform(-2.5, 2.5, (200, 1))
    following, reward = step_pendulum(seen, action)
    for row in range(200):
        env.state = np.array([np.arctan2(seen[row, 1], seen[row, 0]), seen[row, 2]])
        observation, paid, *_ = env.step(action[row])
        np.testing.assert_allclose(following[row], observation, atol=1e-6)
        assert reward[row] == pytest.approx(paid, abs=1e-9)


def test_the_swing_up_swings_up_and_half_the_gain_does_worse():
    total = {}
    for gain in (0.5, 1.0, 1.5):
        seen, paid = states(40), np.zeros(40)
        seen[:, 2] /= 8
        for _ in range(HORIZON):
            seen, reward = step_pendulum(seen, 2 * swing_up(torch.from_numpy(seen), gain).numpy())
            paid += reward
        total[gain] = paid.mean()
    assert total[1.0] > -200 and total[1.5] > -200 and total[0.5] < -350


def test_the_behaviours_density_integrates_to_one_and_is_that_of_what_it_does():
    seen = states(1)
    grid = np.linspace(-2, 2, 20_001)[:, None]
    density = np.exp(behaviour_log_prob(np.repeat(seen, len(grid), 0), grid))
    assert np.trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=1e-3)
    action, log_prob = behave(np.repeat(seen, 20_000, 0), np.random.default_rng(0))
    assert np.abs(action).max() <= 2
    np.testing.assert_allclose(log_prob, behaviour_log_prob(np.repeat(seen, 20_000, 0), action))
    counts, edges = np.histogram(action, 8, (-2, 2))
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        inside = (grid[:, 0] >= low) & (grid[:, 0] <= high)
        assert count / 20_000 == pytest.approx(np.trapezoid(density[inside], grid[inside, 0]), abs=0.015)


def test_the_log_is_legal_and_knows_its_propensities():
    table = pendulum_log(3, np.random.default_rng(0), run_id="test")
    validate(table)
    log = from_table(table)
    assert (log.rows, log.episodes) == (3 * HORIZON, 3)
    assert set(table["source"].to_pylist()) == {"logged"}
    expected = behaviour_log_prob(log.observation.numpy(), log.action.numpy())
    np.testing.assert_allclose(table["behaviour_log_prob"].to_numpy(), expected, atol=1e-5)
    following, reward = step_pendulum(log.observation.numpy(), log.action.numpy())
    np.testing.assert_allclose(log.next_observation, following, atol=1e-5)
    np.testing.assert_allclose(log.reward, reward, atol=1e-4)
    again = pendulum_log(3, np.random.default_rng(0), run_id="test")
    assert table["observation"].equals(again["observation"])


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_targets_are_gaussians_of_a_tenth_of_the_range_around_the_scaled_swing_up(gain):
    target, seen = swing_up_target(gain), torch.from_numpy(states(5))
    mean = (2 * gain * swing_up(seen, 1e9).sign() * swing_up(seen).abs()).clamp(-2, 2)
    inside = swing_up(seen).abs() < 1  # Where the controller itself is not cut off the gain is a factor.
    torch.testing.assert_close(target.mode(seen)[inside], mean[inside])
    action = (target.mode(seen) + 0.3).requires_grad_()
    target.log_prob(seen, action).sum().backward()
    torch.testing.assert_close(action.grad, torch.full_like(action, -0.3 / 0.4**2))


def test_the_third_target_is_a_gaussian_around_what_was_learned():
    target = learned_target(lambda observation: observation[..., :1])
    seen = torch.tensor([[0.5, 0.0, 0.0]])
    assert target.mode(seen).item() == 0.5
    drawn = target.sample(seen.expand(4000, -1), torch.Generator().manual_seed(0))
    assert drawn.std().item() == pytest.approx(0.4, rel=0.05)
