"""The ensemble: what it learns, rolls out, refuses; training that resumes."""

import copy
from dataclasses import replace

import pytest
import torch

from peira.experience.schema import Source, validate
from peira.experience.transitions import TransitionLog
from peira.sources.dynamics_ensemble import (
    TERMINATIONS,
    DynamicsEnsemble,
    EnsembleConfig,
    EnsembleFit,
    EnsembleSource,
    ensemble_loss,
    rollouts_as_log,
    termination_of,
)
from peira.sources.synthetic import invent

CONFIG = EnsembleConfig(
    members=3,
    elites=2,
    hidden=(24, 24),
    updates=700,
    batch_size=64,
    learning_rate=3e-3,
    low=(-2.0,),
    high=(2.0,),
    compiled=False,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_log(rows=1500, terminal=False):
    """s' = (0.9 s_0 + 0.5 a, −s_1) + N(0, 0.1), reward s_0; single steps, cut."""
    generator = seeded(1)
    state, action = (
        torch.randn(rows, 2, generator=generator),
        torch.rand(rows, 1, generator=generator) * 4 - 2,
    )
    following = torch.stack([0.9 * state[:, 0] + 0.5 * action[:, 0], -state[:, 1]], 1)
    following = following + 0.1**0.5 * torch.randn(rows, 2, generator=generator)
    ends = torch.zeros(rows, dtype=torch.bool)
    ends[::10] = terminal
    following[ends] = 1e6  # Its value does not matter.
    return TransitionLog(state, action, state[:, 0].clone(), following, ends, ~ends, torch.arange(rows + 1))


class Target:
    id, version = "target", 4

    def mode(self, observation):
        return -observation[..., :1]

    def choose(self, observation, noise):
        return self.mode(observation) + 5 * noise


@pytest.fixture(scope="module")
def trained():
    fit = EnsembleFit(linear_log(), CONFIG, 0)
    fit.advance(CONFIG.updates)
    return fit


def test_dynamics_and_their_noise_are_learned(trained):
    source = EnsembleSource(trained, linear_log())
    state, action = torch.tensor([[1.0, 0.5]]).expand(4000, 2), torch.full((4000, 1), 0.6)
    following, reward = source.answer(state, action, seeded())
    torch.testing.assert_close(following.mean(0), torch.tensor([1.2, -0.5]), atol=0.08, rtol=0)
    torch.testing.assert_close(following.var(0), torch.full((2,), 0.1), atol=0.05, rtol=0)
    assert reward.mean().item() == pytest.approx(1.0, abs=0.05)


def test_each_row_gets_its_own_answer(trained):
    source = EnsembleSource(trained, linear_log())
    state = torch.linspace(-2, 2, 101)[:, None].expand(101, 2).contiguous()
    following, reward = source.answer(state, torch.zeros(101, 1), seeded())
    assert (following[:, 1] + state[:, 1]).square().mean().item() < 0.3
    assert (reward - state[:, 0]).square().mean().item() < 0.1


def test_what_a_terminal_led_to_is_not_learned():
    fit = EnsembleFit(linear_log(terminal=True), CONFIG, 0)
    fit.advance(100)
    assert fit.outputs.deviation.max() < 5
    assert fit.validation_error().max() < 1.0


def test_the_loss_by_hand():
    ensemble = DynamicsEnsemble(1, 1, 2, (4,), seeded())
    inputs, outputs = torch.randn(6, 2, generator=seeded()), torch.randn(6, 2, generator=seeded(1))
    mean, log_variance = ensemble(inputs.unflatten(0, (2, 3)))
    error = (mean - outputs.unflatten(0, (2, 3))) ** 2
    each = (error / log_variance.exp() + log_variance).mean((1, 2))
    expected = each[0] + each[1] + 0.01 * 2 * 10.5
    torch.testing.assert_close(ensemble_loss(ensemble, inputs, outputs)[0], expected)
    assert bool((log_variance <= 0.5).all()) and bool((log_variance >= -10.0).all())


def test_elites_are_the_best_on_held_out_rows(trained):
    error = trained.validation_error()
    assert trained.elites() == error.argsort()[:2].tolist()


def test_every_row_is_answered_by_one_elite_drawn_at_random(trained):
    source = EnsembleSource(trained, linear_log())
    state, action = torch.tensor([[0.3, 0.2]]).expand(7, 2).contiguous(), torch.zeros(7, 1)
    assert source.answer(state, action, seeded())[0].shape == (7, 2)  # 7 rows do not divide among 2 elites.
    with torch.no_grad():
        for weight in trained.ensemble.net.biases[-1:]:
            kept = weight.clone()
            weight[trained.elites()[0], :, 0] += 100.0
    following, _ = source.answer(state.expand(7, 2), action, seeded())
    shifted = (following[:, 0] > 10).sum().item()
    with torch.no_grad():
        trained.ensemble.net.biases[-1].copy_(kept)
    assert shifted in (3, 4)


def test_rollouts_follow_the_policy_within_the_bounds_and_carry_their_version(trained):
    source = EnsembleSource(trained, linear_log(), horizon=4, starts=50)
    made = invent(source, Target(), seeded())
    log = made.transitions
    assert (made.source, made.policy_version, log.episodes, log.rows) == (Source.DREAMED, 4, 50, 200)
    assert log.action.abs().max() == 2.0
    inner = torch.ones(200, dtype=torch.bool)
    inner[log.first[1:] - 1] = False
    assert torch.equal(log.next_observation[inner], log.observation[inner.roll(1)])
    assert log.truncated.sum() == 50 and not log.truncated[inner].any()
    validate(made.to_table([f"{n:026d}" for n in range(made.transitions.episodes)]))
    with pytest.raises(ValueError, match="policy: an ensemble is rolled out under a policy"):
        source.part(5, None, seeded())


def test_a_rollout_ends_where_the_rule_says_so(trained):
    source = EnsembleSource(
        trained, linear_log(), horizon=6, starts=40, terminates=lambda following: following[:, 0] > 0.5
    )
    log = invent(source, Target(), seeded()).transitions
    assert bool(log.terminated.any()) and log.rows < 240
    assert torch.equal(log.terminated, log.next_observation[:, 0] > 0.5)
    assert bool((log.terminated | log.truncated)[log.first[1:] - 1].all())


def test_a_penalty_lowers_rewards_where_the_elites_are_unsure(trained):
    state, action = torch.tensor([[0.0, 0.0], [8.0, 8.0]]), torch.zeros(2, 1)
    plain, punished = (
        EnsembleSource(trained, linear_log(), penalty=penalty).answer(state, action, seeded())[1]
        for penalty in (0.0, 1.0)
    )
    with torch.no_grad():
        inputs = trained.inputs.z(torch.cat([state, action], 1)).expand(3, -1, -1)
        deviation = (trained.ensemble(inputs)[1] / 2).exp() * trained.outputs.deviation
    largest = torch.linalg.vector_norm(deviation[trained.elites()], dim=-1).amax(0)
    torch.testing.assert_close(plain - punished, largest)


def test_training_resumes_bit_for_bit():
    config = replace(CONFIG, updates=12)
    whole, begun = (EnsembleFit(linear_log(), config, 0) for _ in range(2))
    whole.advance(12)
    begun.advance(5)
    resumed = EnsembleFit(linear_log(), config, 0)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    resumed.advance(100)
    assert resumed.is_over
    for a, b in zip(whole.ensemble.parameters(), resumed.ensemble.parameters(), strict=True):
        assert torch.equal(a, b)


def test_known_terminations():
    hopper, walker = TERMINATIONS["Hopper-v5"], TERMINATIONS["Walker2d-v5"]
    rows = torch.tensor(
        [[1.2, 0.0, 0.0], [0.6, 0.0, 0.0], [1.2, 0.3, 0.0], [1.2, 0.0, -150.0], [1.2, 0.0, 150.0]]
    )
    assert hopper(rows).tolist() == [False, True, True, True, True]
    assert walker(rows[:3]).tolist() == [False, True, False]
    assert not TERMINATIONS["HalfCheetah-v5"](rows).any()


def test_a_world_without_a_known_rule_needs_a_log_without_terminals():
    assert not termination_of("Unknown-v0", linear_log())(torch.ones(3, 2)).any()
    with pytest.raises(
        ValueError, match="env: 150 steps of the log terminate, and no rule is known by which Unknown"
    ):
        termination_of("Unknown-v0", linear_log(terminal=True))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="elites: expected 1 to members=3, got 4"):
        replace(CONFIG, elites=4)
    with pytest.raises(ValueError, match=r"action: .* rows lie outside"):
        EnsembleFit(linear_log(), replace(CONFIG, low=(-1.0,), high=(1.0,)), 0)


def test_rollouts_become_a_log_by_hand():
    rolled = torch.tensor(
        [[[0, 1, 2, 3, 0, 1.0], [3, 1, 2, 4, 1, 1.0], [4, 1, 2, 5, 0, 0.0]], [[7, 1, 2, 8, 0, 1.0]] * 3]
    )
    log = rollouts_as_log(rolled, 1, 1)
    assert log.first.tolist() == [0, 2, 5]
    assert log.observation[:, 0].tolist() == [0, 3, 7, 7, 7]
    assert log.terminated.tolist() == [False, True, False, False, False]
    assert log.truncated.tolist() == [False, False, False, False, True]
