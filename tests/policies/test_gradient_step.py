"""The fused step is Adam with gradient clipping, and it stops before a step that goes too far."""

import pytest
import torch

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.compiled import can_compile
from peira.policies.gradient_step import GradientStep, shuffled_minibatches

ROWS, LEARNING_RATE = 48, 0.01


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind=GaussianActorCritic):
    policy = kind(3, 2, hidden=(6,), generator=generator())
    policy.normaliser.update(torch.randn(20, 3, generator=generator(9)))
    return policy


def columns(policy, rows=ROWS, seed=1):
    observation = torch.randn(rows, 3, generator=generator(seed))
    action, log_prob = policy.act(observation, generator(seed + 1))
    return observation, action, log_prob, torch.randn(rows, generator=generator(seed + 2))


def loss(policy, observation, action, old_log_prob, weight):
    log_ratio = policy.log_prob(observation, action) - old_log_prob
    value = policy.value(observation)
    objective = 10 * (weight * log_ratio.exp()).mean() + (value - weight).square().mean()
    divergence = (log_ratio.expm1() - log_ratio).mean()
    return objective, torch.stack([divergence, objective])


def flat(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("kind", [GaussianActorCritic, CategoricalActorCritic])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_twenty_steps_equal_torchs_adam_after_clipping(kind, max_norm):
    policy, reference = make(kind), make(kind)
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, max_gradient_norm=max_norm, compiled=False)
    adam = torch.optim.Adam(reference.parameters(), lr=LEARNING_RATE, eps=1e-5)
    data = columns(policy)
    for number, rows in enumerate(shuffled_minibatches(ROWS, 5, 4, generator(7))):
        if number == 10:  # As annealing does.
            step.learning_rate.fill_(LEARNING_RATE / 3)
            adam.param_groups[0]["lr"] = LEARNING_RATE / 3
        measures = step(rows, *data)
        value, expected = loss(reference, *(column[rows] for column in data))
        adam.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
        assert (norm > max_norm) == (max_norm == 0.5)
        adam.step()
        torch.testing.assert_close(measures, expected.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(flat(policy), flat(reference), rtol=0, atol=1e-6)


def test_a_step_that_would_start_too_far_is_not_taken():
    policy = make()
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, kl_stop=1e-4, compiled=False)
    data, rows = columns(policy), torch.arange(ROWS)
    divergence, taken = 0.0, 0
    while divergence <= 1e-4:
        before = flat(policy), {name: value.clone() for name, value in step.state_dict().items()}
        divergence = step(rows, *data)[0].item()
        taken += 1
    assert taken > 1
    assert torch.equal(flat(policy), before[0])
    for name, value in step.state_dict().items():
        assert torch.equal(value, before[1][name])
    assert step.state_dict()["count"] == taken - 1


def test_epochs_end_with_the_refused_step():
    policy = make()
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, kl_stop=1e-4, compiled=False)
    measures = step.epochs(columns(policy), epochs=10, minibatches=2, generator=generator())
    assert len(measures) < 20
    assert (measures[:-1, 0] <= 1e-4).all()
    assert measures[-1, 0] > 1e-4
    assert step.state_dict()["count"] == len(measures) - 1


def test_a_divergence_that_is_not_a_number_stops_the_update():
    policy = make()
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, kl_stop=1e-4, compiled=False)
    before = flat(policy)
    data = columns(policy)
    data[2][:] = float("nan")
    assert len(step.epochs(data, epochs=3, minibatches=1, generator=generator())) == 1
    assert torch.equal(flat(policy), before)


def test_without_a_stop_every_step_is_taken():
    policy = make()
    step = GradientStep(policy, loss, learning_rate=0.1, compiled=False)
    measures = step.epochs(columns(policy), epochs=3, minibatches=5, generator=generator())
    assert len(measures) == 15
    assert step.state_dict()["count"] == 15


def test_only_the_named_parameters_change():
    policy, data = make(), columns(make())
    before = {name: value.clone() for name, value in policy.state_dict().items() if torch.is_tensor(value)}
    actor = set(policy.actor_parameters())
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, only=list(actor), compiled=False)
    step.epochs(data, epochs=2, minibatches=2, generator=generator())
    for name, value in policy.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, before[name]) == (name not in actor), name


def test_the_policy_acts_with_the_parameters_just_stepped():
    policy = make()
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, compiled=False)
    assert torch.equal(flat(policy), step.parameters)
    step(torch.arange(ROWS), *columns(policy))
    assert torch.equal(flat(policy), step.parameters)
    loaded = make(GaussianActorCritic)
    policy.load_state_dict(loaded.state_dict())
    assert torch.equal(step.parameters, flat(loaded))


def test_reset_forgets_and_a_loaded_state_goes_on():
    policy, other = make(), make()
    steps = [GradientStep(p, loss, learning_rate=LEARNING_RATE, compiled=False) for p in (policy, other)]
    data, rows = columns(policy), torch.arange(ROWS)
    for _ in range(3):
        steps[0](rows, *data)
    other.load_state_dict(policy.state_dict())
    steps[1].load_state_dict(steps[0].state_dict())
    for step in steps:
        step(rows, *data)
    assert torch.equal(flat(policy), flat(other))
    steps[0].reset()
    assert not any(value.any() for value in steps[0].state_dict().values())
    assert steps[1].state_dict()["count"] == 4


def test_minibatches_hold_every_row_once_an_epoch_in_changing_order():
    parts = list(shuffled_minibatches(10, 2, 3, generator()))
    assert [len(part) for part in parts] == [4, 3, 3, 4, 3, 3]
    first, second = torch.cat(parts[:3]), torch.cat(parts[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    again = list(shuffled_minibatches(10, 2, 3, generator()))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_equals_eager_and_takes_other_lengths():
    policy, eager = make(), make()
    options = {"learning_rate": LEARNING_RATE, "kl_stop": 10.0}
    step = GradientStep(policy, loss, compiled=True, **options)
    reference = GradientStep(eager, loss, compiled=False, **options)
    for rows in (ROWS, 2 * ROWS, 17):
        data = columns(eager, rows, seed=rows)
        found = step.epochs(data, epochs=2, minibatches=3, generator=generator(rows))
        expected = reference.epochs(data, epochs=2, minibatches=3, generator=generator(rows))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat(policy), flat(eager), rtol=0, atol=1e-5)
    # The stop is part of the compiled step too.
    before = flat(policy)
    data[2][:] = 20.0
    assert len(step.epochs(data, epochs=2, minibatches=1, generator=generator())) == 1
    assert torch.equal(flat(policy), before)


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compilation_can_begin_with_tensors_cut_from_larger_ones():
    policy, eager = make(), make()
    step = GradientStep(policy, loss, learning_rate=LEARNING_RATE, compiled=True)
    reference = GradientStep(eager, loss, learning_rate=LEARNING_RATE, compiled=False)
    data, rows = columns(eager), torch.arange(ROWS)
    cut = [torch.cat([column, column])[ROWS:] for column in data]
    torch.testing.assert_close(step(rows, *cut), reference(rows, *data), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(policy), flat(eager), rtol=0, atol=1e-5)
