"""Returns, targets and fits of the hybrid critic, each against a plain loop or automatic differentiation."""

import pytest
import torch

from peira.credit.hybrid_critic import FreshRows, HybridCritic, discounted_returns
from peira.experience.step_log import StepLog, StepRows
from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy

STEPS, ON, OFF, OBS, ACT = 3, 6, 9, 4, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def critic_of(**options):
    return HybridCritic(STEPS, OBS, ACT, discrete=False, hidden=(8,), generator=generator(), **options)


def sources(terminated=False):
    on = FreshRows(drawn(STEPS, ON, OBS, seed=1), drawn(STEPS, ON, ACT, seed=2), drawn(STEPS, ON, seed=3))
    off = StepRows(
        drawn(STEPS, OFF, OBS, seed=4),
        drawn(STEPS, OFF, ACT, seed=5),
        drawn(STEPS, OFF, seed=6),
        drawn(STEPS, OFF, OBS, seed=7),
        torch.full((STEPS, OFF), terminated),
    )
    return on, off


def nearly_fixed_policy():
    """So little noise that the next action is known."""
    policy = StackedGaussianPolicy(STEPS, OBS, ACT, generator=generator(8))
    policy.flat[:, policy.net.size :] = -20
    return policy


def test_returns_are_plain_sums_and_end_in_a_value_only_where_an_episode_was_cut():
    reward, value = drawn(7, 3), drawn(7, 3, seed=1)
    terminated, truncated = torch.zeros(7, 3, dtype=torch.bool), torch.zeros(7, 3, dtype=torch.bool)
    terminated[2, 0] = terminated[6, 0] = terminated[6, 2] = truncated[4, 1] = True
    returns, cut = discounted_returns(reward, terminated, truncated, value, 0.9)
    for env in range(3):
        total, ends_in_value = 0.0, False
        for time in reversed(range(7)):
            if terminated[time, env]:
                total, ends_in_value = 0.0, False
            elif truncated[time, env] or time == 6:
                total, ends_in_value = value[time, env].item(), True
            total = reward[time, env].item() + 0.9 * total
            assert returns[time, env].item() == pytest.approx(total)
            assert cut[time, env].item() == ends_in_value
    assert not cut[:, 2].any()
    # A value anywhere else changes nothing: fresh data are not bootstrapped.
    elsewhere = torch.where((truncated | (torch.arange(7) == 6)[:, None]) & ~terminated, value, 100.0)
    torch.testing.assert_close(discounted_returns(reward, terminated, truncated, elsewhere, 0.9)[0], returns)


def swept_by_hand(critic, policy, on, off, *, stale=False):
    """The sweep with autograd and torch's Adam; `stale` bootstraps on the networks from before (Jacobi)."""
    flats = [critic.flat[h : h + 1].clone() for h in range(STEPS)]
    first = [flat.clone() for flat in flats]

    def value(flat, observation, action):
        return critic.net.forward(flat, torch.cat([observation, action], -1))[-1][..., 0]

    for h in reversed(range(STEPS)):
        target = off.reward[h : h + 1]
        if h + 1 < STEPS:
            ahead = off.next_observation[h : h + 1]
            action = policy.net.forward(policy.flat[h + 1 : h + 2, : policy.net.size], ahead)[-1]
            after = (first if stale else flats)[h + 1].detach()
            target = target + critic.discount * value(after, ahead, action) * ~off.terminated[h : h + 1]
        flat = flats[h].requires_grad_()
        adam = torch.optim.Adam([flat], lr=critic.learning_rate)
        for _ in range(critic.fit_steps):
            adam.zero_grad()
            of_log = (value(flat, off.observation[h : h + 1], off.action[h : h + 1]) - target).square().mean()
            fresh = (
                (value(flat, on.observation[h : h + 1], on.action[h : h + 1]) - on.returns[h : h + 1])
                .square()
                .mean()
            )
            (critic.w_off * of_log + critic.w_on * fresh).backward()
            adam.step()
    return torch.cat(flats).detach()


def test_the_sweep_is_equation_1_from_the_last_step_to_the_first():
    on, off = sources()
    policy, critic = nearly_fixed_policy(), critic_of(w_on=0.7, w_off=1.3, discount=0.9, fit_steps=20)
    expected = swept_by_hand(critic, policy, on, off)
    stale = swept_by_hand(critic, policy, on, off, stale=True)
    measures = critic.sweep(policy, on, off, generator())
    torch.testing.assert_close(critic.flat.data, expected, rtol=1e-6, atol=1e-7)
    assert (critic.flat - stale).abs().max() > 1e-4
    found = critic(on.observation, on.action)
    assert measures["critic_loss/on"] == pytest.approx((found - on.returns).square().mean().item())
    assert measures["critic_loss/on"] < measures["critic_loss/on_before"]


def test_nothing_follows_a_termination():
    on, off = sources(terminated=True)
    policy, critic, again = nearly_fixed_policy(), critic_of(), critic_of()
    critic.sweep(policy, on, off, generator())
    elsewhere = StepRows(off.observation, off.action, off.reward, off.next_observation + 5, off.terminated)
    again.sweep(policy, on, elsewhere, generator())
    assert torch.equal(critic.flat, again.flat)


@pytest.mark.parametrize(("weights", "source"), [({"w_on": 0.0}, "off"), ({"w_off": 0.0}, "on")])
def test_a_source_of_weight_nothing_teaches_nothing(weights, source):
    on, off = sources(terminated=True)
    policy, critic, again = nearly_fixed_policy(), critic_of(**weights), critic_of(**weights)
    measures = critic.sweep(policy, on, off, generator())
    if source == "off":
        on = FreshRows(on.observation, on.action, on.returns + 9)
    else:
        off = StepRows(off.observation, off.action, off.reward + 9, off.next_observation, off.terminated)
    again.sweep(policy, on, off, generator())
    torch.testing.assert_close(critic.flat.data, again.flat.data)
    assert {"critic_loss/on", "critic_loss/off"} <= measures.keys()


def test_without_a_log_it_is_regression_on_returns():
    on, off = sources()
    policy, critic, again = nearly_fixed_policy(), critic_of(), critic_of(w_off=0.0)
    critic.sweep(policy, on, None, generator())
    again.sweep(policy, on, off, generator())
    torch.testing.assert_close(critic.flat.data, again.flat.data)


def test_values_are_means_over_the_policy():
    observation = drawn(STEPS, ON, OBS)
    policy = StackedGaussianPolicy(STEPS, OBS, ACT, generator=generator(8))
    critic = critic_of()
    critic.flat += 0.5 * drawn(*critic.flat.shape, seed=3)
    many = critic.value(policy, observation, generator(), samples=4000)
    drawn_by_hand = policy.drawn(policy.activations(observation)[-1].expand(4000, -1, -1, -1), generator(1))
    by_hand = torch.stack([critic(observation, action) for action in drawn_by_hand[:1000]]).mean(0)
    torch.testing.assert_close(many, by_hand, rtol=0, atol=0.1)
    discrete = HybridCritic(STEPS, OBS, ACT, discrete=True, hidden=(8,), generator=generator())
    choosing = StackedCategoricalPolicy(STEPS, OBS, ACT, generator=generator(2))
    probability = choosing.activations(observation)[-1].softmax(-1)
    each = [discrete(observation, torch.full((STEPS, ON), choice)) for choice in range(ACT)]
    expected = (probability * torch.stack(each, -1)).sum(-1)
    torch.testing.assert_close(discrete.value(choosing, observation, generator()), expected)


def test_discrete_actions_fit_only_what_was_taken():
    critic = HybridCritic(1, OBS, 3, discrete=True, hidden=(), learning_rate=5e-2, fit_steps=300)
    action = torch.randint(2, (1, ON), generator=generator())
    on = FreshRows(drawn(1, ON, OBS), action, torch.full((1, ON), 2.0).double())
    never = critic.net.layers(critic.flat)[0][0][0, :, 2].clone()
    critic.sweep(StackedCategoricalPolicy(1, OBS, 3), on, None, generator())
    torch.testing.assert_close(critic(on.observation, action), on.returns, rtol=0, atol=0.2)
    assert torch.equal(critic.net.layers(critic.flat)[0][0][0, :, 2], never)


def test_one_critic_for_all_steps_learns_the_value_of_going_on_for_ever():
    """One state, reward 1, γ = 0.8: Q = 5 by the log alone, and by fresh returns alone."""
    rows = 64
    log = StepLog(
        torch.zeros(rows, OBS), torch.zeros(rows, ACT), torch.ones(rows), torch.zeros(rows, OBS),
        torch.zeros(rows, dtype=torch.bool), torch.tensor([0, rows]),
    )  # fmt: skip
    on = FreshRows(torch.zeros(1, 8, OBS), torch.zeros(1, 8, ACT), torch.full((1, 8), 5.0).double())
    policy = StackedGaussianPolicy(1, OBS, ACT, generator=generator())
    policy.flat[:, policy.net.size :] = -20
    for weights, given in (({"w_on": 0.0}, log), ({"w_off": 0.0}, None)):
        critic = HybridCritic(
            1,
            OBS,
            ACT,
            discrete=False,
            hidden=(8,),
            discount=0.8,
            learning_rate=3e-2,
            fit_steps=20,
            **weights,
        )
        for _ in range(4):
            measures = critic.iterate(policy, on, given, generator(), fits=8, minibatch=4)
        found = critic(on.observation, on.action)
        torch.testing.assert_close(found, on.returns, rtol=0.05, atol=0)
        assert measures["critic_loss/on"] < 0.1
