import copy
import dataclasses

import pytest
import torch

from peira.experience.transitions import TransitionLog
from peira.learners.offline import OfflineLearner, Settings, best_episodes, lanes, standardisation

SMALL = {"hidden": (16, 16), "batch": 32}
EVERY = {
    "td3": Settings(**SMALL),
    "rebrac": Settings(**SMALL, critic_layer_norm=True, actor_layer_norm=True, critic_cloning=0.1),
    "iql": Settings(method="iql", critic_updates=1, **SMALL),
    "sac": Settings(method="sac", critic_updates=1, **SMALL),
    "rlpd": Settings(
        method="sac",
        critics=5,
        critic_updates=3,
        fresh_batches=True,
        critic_layer_norm=True,
        actor_takes_mean=True,
        **SMALL,
    ),
    "bc": Settings(method="bc", critic_updates=1, **SMALL),
}


def log_of(rows: int = 400, length: int = 40, terminated: bool = False, seed: int = 0) -> TransitionLog:
    """A bandit of sorts: reward −(a − tanh s)², the next state a fresh draw."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(rows, 2, generator=generator)
    action = torch.rand(rows, 2, generator=generator) * 2 - 1
    first = torch.arange(0, rows + 1, length)
    last = torch.zeros(rows, dtype=torch.bool)
    last[first[1:] - 1] = True
    return TransitionLog(
        observation=observation,
        action=action,
        reward=-(action - observation.tanh()).square().sum(1),
        next_observation=torch.randn(rows, 2, generator=generator),
        terminated=last if terminated else torch.zeros_like(last),
        truncated=torch.zeros_like(last) if terminated else last,
        first=first,
    )


def learner_of(settings: Settings, log: TransitionLog, seeds=(0,), compiled: bool = False) -> OfflineLearner:
    learner = OfflineLearner(
        settings,
        log.observation_size,
        log.action_size,
        low=[-1, -1],
        high=[1, 1],
        seeds=seeds,
        compiled=compiled,
    )
    learner.standardise(*standardisation(log.observation))
    return learner


def learn(learner: OfflineLearner, log: TransitionLog, updates: int) -> torch.Tensor:
    rows = learner.draw_rows(updates, [(0, log.rows, learner.settings.batch)])
    return learner.update(learner.pack(log), rows)


def parameters(policy) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in policy.parameters()])


@pytest.mark.parametrize("name", EVERY)
def test_stacked_seeds_come_out_as_if_each_had_run_alone(name):
    log = log_of()
    together = learner_of(EVERY[name], log, seeds=(3, 4, 5))
    measures = learn(together, log, 4)
    for place, seed in enumerate((3, 4, 5)):
        alone = learner_of(EVERY[name], log, seeds=(seed,))
        torch.testing.assert_close(learn(alone, log, 4)[:, 0], measures[:, place])
        torch.testing.assert_close(parameters(alone.policies[0]), parameters(together.policies[place]))
    assert not torch.allclose(parameters(together.policies[0]), parameters(together.policies[1]))
    assert [policy.version for policy in together.policies] == [4, 4, 4]


@pytest.mark.parametrize(
    ("seeds", "updates", "threads"), [(5, 10, 2), (5, 1, 2), (3, 7, 2), (2, 4, 8), (7, 5, 3)]
)
def test_lanes_are_equally_long_and_what_a_part_continues_is_over_by_then(seeds, updates, threads):
    plan = lanes(seeds, updates, threads)
    lengths = [sum(stop - first for _, first, stop in lane) for lane in plan]
    assert len(plan) == min(seeds, threads) and max(lengths) - min(lengths) <= 1
    parts = sorted(part for lane in plan for part in lane)
    assert [
        update for seed in range(seeds) for part in parts if part[0] == seed for update in range(*part[1:])
    ] == (list(range(updates)) * seeds)
    for lane in plan:
        clock = 0
        for seed, first, stop in lane:
            # Its beginning is the first thing that another lane does.
            assert not first or ((seed, 0, first) in [other[0] for other in plan] and first <= clock)
            clock += stop - first


def test_the_compiled_update_is_the_plain_one_and_lanes_do_not_mix():
    log = log_of()
    plain = learner_of(EVERY["td3"], log, seeds=(0, 1, 2))
    native = learner_of(EVERY["td3"], log, seeds=(0, 1, 2), compiled=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(learn(plain, log, 6), learn(native, log, 6), rtol=1e-4, atol=1e-5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(plain.policies, native.policies, strict=True):
        torch.testing.assert_close(parameters(one), parameters(other), rtol=1e-4, atol=1e-5)
    longer = log_of(rows=800)
    torch.testing.assert_close(learn(plain, longer, 2), learn(native, longer, 2), rtol=1e-4, atol=1e-5)


def plain_td3_bc(learner: OfflineLearner, log: TransitionLog, rows, noise) -> dict[str, torch.Tensor]:
    """One update of TD3+BC by torch's own Adam and backward: targets, actor, two critic steps (``pgd.md`` 2.7)."""
    settings = learner.settings
    batch = log.take(rows)
    offset, scale = standardisation(log.observation)
    s, s_next = (batch.observation - offset) * scale, (batch.next_observation - offset) * scale
    actor, critics = learner.policies[0], learner.critics[0]
    state = {name: tensor.clone() for name, tensor in learner.state_dict()["state"].items()}
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    for module, name in ((target_actor, "actor"), (target_critics, "critics")):
        torch.nn.utils.vector_to_parameters(
            torch.lerp(state[f"{name} target"][0], state[name][0], settings.polyak), module.parameters()
        )
    actor, critics = copy.deepcopy(actor), copy.deepcopy(critics)
    adam = {"lr": settings.learning_rate, "eps": 1e-5}
    actor_steps, critic_steps = (
        torch.optim.Adam(actor.parameters(), **adam),
        torch.optim.Adam(critics.parameters(), **adam),
    )

    action = actor.unit_mode(s)
    q = critics(s, action)[0]
    loss = -2.5 / q.abs().mean().detach() * q.mean() + (action - batch.action).square().mean()
    actor_steps.zero_grad()
    loss.backward()
    actor_steps.step()
    for step in range(2):
        with torch.no_grad():
            smoothing = (0.2 * noise[step]).clamp(-0.5, 0.5)
            next_action = (target_actor.unit_mode(s_next) + smoothing).clamp(-1, 1)
            value = target_critics(s_next, next_action).amin(0)
            target = batch.reward + 0.99 * (~batch.terminated).float() * value
        critic_steps.zero_grad()
        (critics(s, batch.action) - target).square().mean().backward()
        critic_steps.step()
    return {"actor": parameters(actor), "critics": parameters(critics)}


@pytest.mark.parametrize("terminated", [False, True])
def test_an_update_of_td3_bc_is_the_one_that_torch_takes(terminated, monkeypatch):
    log = log_of(terminated=terminated)
    learner = learner_of(Settings(**SMALL, polyak=0.3, learning_rate=1e-2), log)
    learn(learner, log, 3)  # so that targets differ from what they follow
    for name in ("actor", "critics"):  # torch's Adam begins anew
        for moment in ("first", "second"):
            learner.state_dict()["state"][f"{name} {moment}"].zero_()
    learner.updates = 0
    rows = learner.draw_rows(1, [(0, log.rows, 32)])
    noise, subset = learner._chance(1)
    monkeypatch.setattr(learner, "_chance", lambda updates: (noise, subset))
    expected = plain_td3_bc(learner, log, rows[0, 0, 0], noise[0, 0])
    learner.update(learner.pack(log), rows)
    torch.testing.assert_close(parameters(learner.policies[0]), expected["actor"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parameters(learner.critics[0]), expected["critics"], rtol=1e-4, atol=1e-6)


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    """The end of the log is all that differs: critics must come apart."""
    cut, ended = log_of(terminated=False), log_of(terminated=True)
    learners = [learner_of(Settings(**SMALL), log) for log in (cut, ended)]
    last = cut.first[1:] - 1
    rows = last[torch.arange(32) % len(last)][None, None, None]
    for learner, log in zip(learners, (cut, ended), strict=True):
        learner.update(learner.pack(log), rows)
    assert not torch.allclose(parameters(learners[0].critics[0]), parameters(learners[1].critics[0]))
    packed = learners[0].pack(cut)
    assert packed[:, 7].eq(1).all() and learners[1].pack(ended)[last, 7].eq(0).all()


def test_no_next_action_is_taken_from_another_episode():
    log = log_of(rows=80, length=40)
    packed = learner_of(EVERY["rebrac"], log).pack(log)
    next_action, known = packed[:, 8:10], packed[:, 10]
    assert known.eq(0).nonzero().flatten().tolist() == [39, 79]
    torch.testing.assert_close(next_action[:39], log.action[1:40])
    changed = dataclasses.replace(log, action=log.action.clone())
    changed.action[40] = 0.123  # The first action of the second episode is nobody's next one.
    one, other = (learner_of(EVERY["rebrac"], log) for _ in range(2))
    rows = torch.full((1, 1, 1, 32), 39)
    one.update(one.pack(log), rows)
    other.update(other.pack(changed), rows)
    assert torch.equal(parameters(one.critics[0]), parameters(other.critics[0]))


@pytest.mark.parametrize(("name", "near"), [("td3", 0.2), ("iql", 0.35), ("sac", 0.3)])
def test_what_pays_is_learned_from_actions_that_did_not_know_it(name, near):
    """Actions of the log are uniform; the best is tanh(s). Cloning them comes to 0."""
    log = log_of(rows=4000, terminated=True)
    fast = {"learning_rate": 1e-2, "batch": 128}
    settings = dataclasses.replace(
        EVERY[name], **fast, discount=0.0, inverse_temperature=10.0, cloning_weight=0.1
    )
    best, clone = learner_of(settings, log), learner_of(dataclasses.replace(EVERY["bc"], **fast), log)
    learn(best, log, 250 if name == "iql" else 100)
    learn(clone, log, 60)
    away = [
        (who.policies[0].mode(log.observation) - log.observation.tanh()).abs().mean().item()
        for who in (best, clone)
    ]
    assert away[0] < near < away[1], away


@pytest.mark.parametrize("name", EVERY)
def test_a_learner_goes_on_from_its_state_as_if_it_had_never_stopped(name):
    log = log_of()
    through, stopped = (learner_of(EVERY[name], log, seeds=(0, 1)) for _ in range(2))
    learn(through, log, 2)
    expected = learn(through, log, 3)
    learn(stopped, log, 2)
    state = {
        **stopped.state_dict(),
        "state": {name: tensor.clone() for name, tensor in stopped.state_dict()["state"].items()},
    }
    resumed = learner_of(EVERY[name], log_of(seed=9), seeds=(7, 8))
    resumed.load_state_dict(state)
    assert torch.equal(learn(resumed, log, 3), expected)
    assert torch.equal(parameters(resumed.policies[1]), parameters(through.policies[1]))
    assert resumed.policies[0].version == 5


def test_rows_come_from_their_ranges_in_the_numbers_asked_for():
    log = log_of()
    learner = learner_of(EVERY["rlpd"], log)
    rows = learner.draw_rows(3, [(0, 100, 24), (100, 400, 8), (5, 5, 0)])
    assert rows.shape == (3, 1, 3, 32)
    assert (rows < 100).sum(-1).eq(24).all() and (rows >= 100).sum(-1).eq(8).all()
    with pytest.raises(ValueError, match="numbers that add up to batch=32"):
        learner.draw_rows(1, [(0, 100, 31)])
    with pytest.raises(ValueError, match="rows to draw from"):
        learner.draw_rows(1, [(7, 7, 32)])


def test_a_number_that_is_not_finite_is_refused_by_name():
    log = log_of()
    spoiled = dataclasses.replace(log, reward=log.reward.clone())
    spoiled.reward[:] = 3e38
    learner = learner_of(EVERY["td3"], spoiled)
    with pytest.raises(
        RuntimeError, match=r"critic_loss is (inf|nan) at update 1 \(seed 0\): the parameters are of no use"
    ):
        learn(learner, spoiled, 2)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_was():
    log = log_of()
    learner = learner_of(EVERY["bc"], log)

    def spoiled(self, state, batches, noise, subset, rates):
        def loss(networks):
            action = networks.actor.unit_mode(self._batch(batches[0]).observation)
            return (action.sum() * 0.0).sqrt(), ()

        state, loss, _, norm = self._descend(state, ("actor",), rates[0], loss)
        return state, (loss, norm.sqrt())

    learner._one = spoiled.__get__(learner)
    with pytest.raises(RuntimeError, match="gradient_norm is nan at update 1"):
        learn(learner, log, 1)


def test_constant_channels_are_shifted_but_not_blown_up():
    observation = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    offset, scale = standardisation(observation)
    assert offset.tolist() == [2.0, 5.0]
    assert scale.tolist() == pytest.approx([1 / 1.001, 1.0])


def test_the_best_episodes_are_those_of_the_highest_returns():
    log = log_of(rows=400, length=40)
    kept = best_episodes(log, 0.2)
    assert kept.episodes == 2
    assert sorted(kept.returns().tolist()) == pytest.approx(sorted(log.returns().tolist())[-2:])
    assert best_episodes(log, 0.001).episodes == 1
    with pytest.raises(ValueError, match="best: expected a share above 0"):
        best_episodes(log, 0.0)


def test_one_episode_is_enough():
    log = log_of(rows=40, length=40)
    measures = learn(learner_of(EVERY["td3"], log), log, 3)
    assert torch.isfinite(measures).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"critics_in_minimum": 3}, "critics_in_minimum: expected at most critics=2, got 3"),
        ({"method": "iql"}, "critic_updates: expected 1, on one batch, under iql, got 2"),
        ({"discount": 1.5}, "discount: expected 0 to 1, got 1.5"),
        ({"hidden": (0,)}, "hidden: expected layers of at least 1, got 0"),
        (
            {"method": "iql", "critic_updates": 1, "critics_in_minimum": 1},
            "critics_in_minimum: expected all 2 under iql",
        ),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)
