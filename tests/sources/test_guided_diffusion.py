"""A fitted model as a user holds it: saved, sampled, guided, diagnosed; what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from peira.experience.schema import Source, validate
from peira.experience.transitions import TransitionLog, from_table
from peira.policies.continuous import DeterministicActor, GaussianActor, TanhGaussianActor
from peira.sources.diffusion.diagnostics import diagnose, over_strengths
from peira.sources.diffusion.sampler import Sampler, SamplerConfig
from peira.sources.diffusion.tuning import tuned_strength
from peira.sources.guided_diffusion import (
    DiffusionFit,
    DiffusionSource,
    FitConfig,
    TrajectoryDiffusion,
    as_experience,
    fit,
    generate,
)
from peira.sources.synthetic import invent, standard_scores, target_log_prob

SAMPLER = SamplerConfig(steps=8, churn=2.4, strength=0.5)
CONFIG = FitConfig(
    length=6,
    stride=1,
    low=(-2.0,),
    high=(2.0,),
    features=8,
    blocks=2,
    updates=100,
    batch_size=32,
    learning_rate=4e-3,
    ema_decay=0.5,
    ema_every=2,
    compiled=False,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_log(episodes=60, steps=12):
    """s' = 0.9 s + 0.5 a exactly, a = −0.2 s + N(0, 0.25), reward −s²; cut by the clock."""
    generator = seeded(1)
    states, actions = [torch.randn(episodes, generator=generator)], []
    for _ in range(steps):
        actions.append((-0.2 * states[-1] + 0.5 * torch.randn(episodes, generator=generator)).clamp(-2, 2))
        states.append(0.9 * states[-1] + 0.5 * actions[-1])
    state, action = torch.stack(states, 1), torch.stack(actions, 1)
    last = torch.zeros(episodes, steps, dtype=torch.bool)
    last[:, -1] = True
    return TransitionLog(
        observation=state[:, :-1].reshape(-1, 1),
        action=action.reshape(-1, 1),
        reward=-state[:, :-1].square().reshape(-1),
        next_observation=state[:, 1:].reshape(-1, 1),
        terminated=torch.zeros(episodes * steps, dtype=torch.bool),
        truncated=last.flatten(),
        first=torch.arange(episodes + 1) * steps,
    )


def simulator(observation, action):
    return 0.9 * observation + 0.5 * action, -observation.square().sum(-1)


class Target:
    """N(−0.8 s, 0.25)."""

    id, version = "target", 7

    def mode(self, observation):
        return -0.8 * observation

    def choose(self, observation, noise):
        return self.mode(observation) + 0.5 * noise

    def log_prob(self, observation, action):
        return (-2 * (action - self.mode(observation)).square()).sum(-1)


@pytest.fixture(scope="module")
def model():
    return fit(linear_log(), CONFIG, seeded())


@pytest.fixture(scope="module")
def real():
    windows = DiffusionFit(linear_log(), CONFIG, 0).windows
    return windows.at(windows.start)


def test_a_saved_model_samples_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    again = TrajectoryDiffusion.load(tmp_path / "model")
    assert again.id == model.id and again.config == model.config
    first, second = (generate(which, Target(), SAMPLER, 5, seeded()) for which in (model, again))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"model: .* holds no diffusion\.json"):
        TrajectoryDiffusion.load(tmp_path)


def test_fitting_in_pieces_is_fitting_at_once(model):
    training = DiffusionFit(linear_log(), CONFIG, int(torch.randint(2**31 - 1, (1,), generator=seeded())))
    while not training.is_over:
        training.advance(7)
    assert training.model().id == model.id


def test_held_out_episodes_give_a_validation_loss():
    training = DiffusionFit(linear_log(), CONFIG, 0)
    before = training.validation_loss()
    training.advance(100)
    assert training.validation_loss() < before
    assert DiffusionFit(linear_log(episodes=1), CONFIG, 0).validation_loss() is None


def test_samples_are_from_averaged_weights():
    training = DiffusionFit(linear_log(), replace(CONFIG, ema_every=1000), 0)
    fresh = training.model().id
    training.advance(100)
    assert training.model().id == fresh


@pytest.mark.parametrize("mode", ["recipe", "dps-after", "dps-before", "dps-full", "stopgrad"])
def test_strength_zero_and_no_policy_are_the_same_windows(model, mode):
    config = replace(SAMPLER, guidance=mode)
    plain = generate(model, None, config, 4, seeded())
    assert torch.equal(plain, generate(model, Target(), replace(config, strength=0.0), 4, seeded()))
    assert not torch.equal(plain, generate(model, Target(), config, 4, seeded()))


@pytest.mark.parametrize("mode", ["recipe", "dps-after", "dps-before", "dps-full", "stopgrad"])
def test_guidance_makes_actions_likelier(model, real, mode):
    guided, plain = (
        diagnose(model.channels, generate(model, Target(), config, 128, seeded()), Target(), real=real)
        for config in (
            replace(SAMPLER, guidance=mode, strength=1.0),
            replace(SAMPLER, strength=0.0),
        )
    )
    assert guided["log_pi"] > plain["log_pi"] + 0.1
    assert guided["std_z"] < plain["std_z"]


@pytest.mark.parametrize("n", [3, 300])
def test_every_denoiser_call_takes_all_windows(model, n):
    """2N − 1 calls and, for the recipe's denoised gradient, one more before each step but the last."""
    seen = []

    def counted(x, sigma):
        seen.append(len(x))
        return model.denoiser(x, sigma)

    sampler = Sampler(
        counted, SAMPLER, actions=model.channels.actions, log_density=model.log_density(Target())
    )
    sampler.sample(n, (6, model.channels.size), seeded())
    assert seen == [n] * (2 * 8 - 1 + 8 - 1)


@pytest.mark.parametrize(
    ("mode", "flows"),
    [("recipe", False), ("stopgrad", False), ("dps-before", False), ("dps-after", True), ("dps-full", True)],
)
def test_gradients_reach_states_only_where_they_are_asked_for(model, mode, flows):
    seen = set()

    class Watched(Target):
        def log_prob(self, observation, action):
            assert action.requires_grad
            seen.add(observation.requires_grad)
            return super().log_prob(observation, action)

    generate(model, Watched(), replace(SAMPLER, guidance=mode), 200, seeded())
    assert seen == {flows}


def test_large_sets_are_sampled_in_equal_parts(model):
    assert generate(model, None, SAMPLER, 11, seeded(), side_by_side=4).shape == (11, 6, 4)
    source = DiffusionSource(model, SAMPLER, windows=1025)
    assert source.parts == [342, 342, 341]


def test_another_length_draws_a_warning(model):
    with pytest.warns(UserWarning, match="length: windows of 9 steps from a model of 6"):
        assert generate(model, None, SAMPLER, 2, seeded(), length=9).shape == (2, 9, 4)


def test_no_windows_are_refused(model):
    with pytest.raises(ValueError, match="n: expected at least 1 window, got 0"):
        generate(model, None, SAMPLER, 0, seeded())


class Broken(Target):
    def log_prob(self, observation, action):
        return super().log_prob(observation, action) * torch.where(observation > 0, torch.nan, 1.0).sum(-1)


class Detached(Target):
    def log_prob(self, observation, action):
        return super().log_prob(observation, action).detach()


@pytest.mark.parametrize("mode", ["recipe", "dps-full", "stopgrad"])
def test_a_gradient_that_is_not_finite_is_refused(model, mode):
    config = replace(SAMPLER, guidance=mode)
    with pytest.raises(ValueError, match="policy: the gradient of its log_prob is not finite at noise level"):
        generate(model, Broken(), config, 8, seeded())
    with pytest.raises(ValueError, match="policy: its log_prob does not depend on the action differentiably"):
        generate(model, Detached(), config, 8, seeded())


def test_subtracting_the_behaviour_needs_one(model):
    config = replace(SAMPLER, negative_behaviour=0.2)
    with pytest.raises(ValueError, match="negative_behaviour: needs a behaviour policy"):
        generate(model, Target(), config, 4, seeded())
    with pytest.raises(ValueError, match=r"negative_behaviour: 0\.2 without a strength"):
        replace(config, strength=0.0)
    assert not torch.equal(
        generate(model, Target(), config, 4, seeded(), behaviour=Target()),
        generate(model, Target(), SAMPLER, 4, seeded()),
    )


@pytest.mark.parametrize("kind", [GaussianActor, TanhGaussianActor, DeterministicActor])
def test_actors_of_the_learners_guide(model, kind):
    actor = kind(1, 1, low=[-2.0], high=[2.0], hidden=(8,), generator=seeded())
    z = generate(model, actor, SAMPLER, 16, seeded())
    assert bool(z.isfinite().all())
    assert not any(p.grad is not None for p in actor.parameters())


def test_a_deterministic_actor_is_a_gaussian_of_half_the_range():
    actor = DeterministicActor(1, 1, low=[-2.0], high=[2.0], hidden=(8,), generator=seeded())
    observation, action = torch.tensor([[0.3]]), torch.tensor([[1.1]])
    expected = -0.5 * ((action - actor.mode(observation)) / 2).square()
    half = torch.tensor([2.0])
    torch.testing.assert_close(target_log_prob(actor, observation, action, half), expected[:, 0])
    z = standard_scores(actor, observation, action, half)
    torch.testing.assert_close(z, (action - actor.mode(observation).detach()) / 2)


def test_scores_are_in_deviations_of_the_policy():
    observation = torch.tensor([[1.0]])
    z = standard_scores(Target(), observation, torch.tensor([[-0.3]]), torch.tensor([2.0]))
    torch.testing.assert_close(z, torch.tensor([[1.0]]))


def test_experience_says_where_it_comes_from(model, tmp_path):
    z = generate(model, Target(), SAMPLER, 9, seeded())
    guided = as_experience(model, z, Target(), SAMPLER, seed=3)
    assert (guided.source, guided.policy_id, guided.policy_version) == (Source.GUIDED, "target", 7)
    assert guided.about["strength"] == 0.5 and guided.about["mode"] == "recipe"
    assert math.isfinite(guided.about["mean_log_pi"])
    table = validate(guided.to_table([f"{n:026d}" for n in range(9)]))
    assert not {"propensity", "behaviour_log_prob"} & set(table.column_names)
    back = from_table(table)
    torch.testing.assert_close(back.next_observation, guided.transitions.next_observation)
    assert torch.equal(back.first, guided.transitions.first)
    unguided = as_experience(model, z, None, SAMPLER, seed=3)
    assert (unguided.source, unguided.policy_version) == (Source.DREAMED, None)
    assert unguided.about["strength"] == 0.0
    assert validate(unguided.to_table([f"{n:026d}" for n in range(9)]))["policy_version"].null_count == 9 * 5


def test_one_seed_is_one_set(model):
    source = DiffusionSource(model, SAMPLER, windows=8)
    first, second = (invent(source, Target(), seeded()) for _ in range(2))
    assert torch.equal(first.transitions.action, second.transitions.action)
    assert first.transitions.episodes == 8


def test_diagnosis_of_real_windows_is_what_the_data_are(model, real):
    told = diagnose(model.channels, real, Target(), real=real, simulator=simulator)
    assert told["dynamics_error"] == pytest.approx(0.0, abs=1e-6)
    assert told["reward_error"] == pytest.approx(0.0, abs=1e-6)
    assert told["nearest_neighbour"] == pytest.approx(0.0, abs=1e-3)
    assert told["state_variance"] == pytest.approx(1.0, abs=0.15)
    assert told["terminal_rate"] == told["real_terminal_rate"] == 0.0
    # a + 0.8 s of the behaviour is 0.6 s + N(0, 0.25).
    observation, action = model.channels.decision(real[:, :-1])
    assert told["std_z"] == pytest.approx(((action + 0.8 * observation) / 0.5).std().item(), rel=1e-4)
    assert len(told["dynamics_error_by_step"]) == len(told["log_pi_by_step"]) == 5


def test_diagnosis_sees_broken_dynamics_and_collapse(model, real):
    broken = real.clone()
    broken[:, 3, 0] += 2.0
    told = diagnose(model.channels, broken, Target(), real=real, simulator=simulator)
    by_step = told["dynamics_error_by_step"]
    assert by_step[2] == pytest.approx(4.0, rel=0.01) and by_step[3] > 1.0
    assert max(by_step[0], by_step[1], by_step[4]) < 1e-6
    collapsed = real.clone()
    collapsed[..., 1] = 0.3
    assert diagnose(model.channels, collapsed, Target(), real=real)["action_variance"] == pytest.approx(
        0, abs=1e-6
    )


def test_curves_are_in_the_order_of_the_strength(model, real):
    windows = {
        strength: generate(model, Target(), replace(SAMPLER, strength=strength), 64, seeded())
        for strength in (2.0, 0.0, 0.3)
    }
    curves = over_strengths(model.channels, windows, Target(), real=real, simulator=simulator)
    assert [row["strength"] for row in curves] == [0.0, 0.3, 2.0]
    assert curves[0]["log_pi"] < curves[1]["log_pi"] < curves[2]["log_pi"]
    assert curves[0]["std_z"] > curves[2]["std_z"]


def test_tuning_finds_the_strength_of_the_policys_own_spread(model):
    start = replace(SAMPLER, strength=0.01)
    strength, path = tuned_strength(model, Target(), start, seeded(), rounds=15, windows=128)
    assert path[0]["strength"] == 0.01 and path[0]["std_z"] > 1.1
    found = generate(model, Target(), replace(SAMPLER, strength=strength), 256, seeded(5))
    observation, action = model.channels.decision(found[:, :-1])
    assert ((action + 0.8 * observation) / 0.5).std().item() == pytest.approx(1.0, abs=0.12)
    collapsed, path = tuned_strength(
        model, Target(), replace(SAMPLER, strength=3.0), seeded(), rounds=3, windows=64
    )
    assert path[0]["std_z"] < 0.5 and collapsed < 3.0
    actor = DeterministicActor(1, 1, low=[-2.0], high=[2.0], hidden=(8,), generator=seeded())
    with pytest.raises(ValueError, match="policy: a deterministic one has no spread"):
        tuned_strength(model, actor, SAMPLER, seeded())
    with pytest.raises(ValueError, match=r"strength: expected a start above 0, got 0\.0"):
        tuned_strength(model, Target(), replace(SAMPLER, strength=0.0), seeded())
