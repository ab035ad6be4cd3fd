"""A dead group gets back a success of its own task; the buffer takes in fresh episodes only (``arpo.md`` 8, 2–4)."""

import torch
from laid_batches import GradientKeeper, SilentRun, episode

from peira.experience.success_replay import SuccessReplay
from peira.learners.language import LanguageLearner
from peira.policies.lm.model import make_tiny
from peira.recipes import arpo, grpo
from peira.runs.text_ledger import group_columns

CONFIG = arpo.Config(groups=1, minibatches=1)


def group_of(scores, *, log_prob=-0.5, version=0):
    return [episode(score, log_prob=log_prob, version=version) for score in scores]


def named(name, scores, version):
    """A group whose first success is called `name`."""
    group = group_of(scores, version=version)
    for member in group:
        if member.score:
            member.id = name
    return group


def history(replay):
    """Three successes, A, B and C, and then a group that fails as a whole."""
    generator = torch.Generator().manual_seed(0)
    one_success = [1.0] + [0.0] * 7
    for version, name in enumerate("ABC"):
        fresh = [named(name, one_success, version)]
        spliced = replay.splice(fresh, generator, version=version)
        assert not spliced.injected
        replay.store(fresh[0])
    return [group_of([0.0] * 8, version=3)], generator


def test_order_of_operations():
    replay = SuccessReplay(2)
    fresh, generator = history(replay)
    assert [entry.id for entry in replay.of_task("t")] == ["B", "C"]
    spliced = replay.splice(fresh, generator, version=3)
    replay.store(fresh[0])
    (group,) = spliced.groups
    assert len(group) == 8
    assert group[0].id in ("B", "C")
    assert group[0].source == "replayed"
    assert [entry.id for entry in replay.of_task("t")] == ["B", "C"]
    assert spliced.dead_before == 1
    assert spliced.ages == [3 - group[0].policy_version]
    row = group_columns(fresh, spliced.groups, CONFIG.format_weight)
    assert row["success"] == 0.0
    assert (row["dead_groups"], row["dead_groups_after_replay"]) == (1.0, 0.0)


def test_without_replay_a_dead_group_has_no_gradient():
    learner = GradientKeeper(-0.5)
    grpo.learn(CONFIG, SilentRun(), learner, [group_of([0.0] * 8)], None)
    assert learner.gradients[0].eq(0).all()


def test_the_advantage_is_computed_anew_in_the_new_group():
    replay = SuccessReplay(2)
    fresh, generator = history(replay)
    learner, run = GradientKeeper(-0.5), SilentRun()
    grpo.learn(CONFIG, run, learner, replay.splice(fresh, generator, version=3).groups, None)
    (gradient,) = learner.gradients
    torch.testing.assert_close(gradient[:2], torch.full((2,), 2.47486 / 2 / 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient[2:], torch.full((14,), -0.35355 / 2 / 8), atol=1e-5, rtol=0)
    assert run.row["replayed_steps"] == 1


def test_a_format_failure_does_not_bring_a_dead_group_to_life_for_replay():
    replay = SuccessReplay()
    group = group_of([0.0] * 8)
    group[3].ending = "parse_error"
    assert replay.is_dead(group)


def test_errors_of_the_world_neither_fill_a_group_nor_enter_the_buffer():
    replay = SuccessReplay()
    lost = episode(1.0, ending="env_error")
    replay.store([lost])
    assert len(replay) == 0
    assert not replay.is_dead([lost] * 8)
    assert not replay.is_dead([lost] * 7 + [episode(1.0)])


def test_what_is_too_old_or_used_up_is_left_out():
    for limits in ({"max_age": 2}, {"max_uses": 1}):
        replay = SuccessReplay(**limits)
        replay.store([episode(1.0, version=0)])
        generator = torch.Generator().manual_seed(0)
        dead = [group_of([0.0] * 8)]
        assert replay.splice(dead, generator, version=2).injected
        assert not replay.splice(dead, generator, version=3).injected


def test_the_buffer_comes_back_from_its_state():
    replay = SuccessReplay(2)
    history(replay)
    other = SuccessReplay(2)
    other.load_state_dict(replay.state_dict())
    assert other.of_task("t") == replay.of_task("t")


def test_a_task_never_solved_leaves_every_parameter_as_it_was():
    """Cold start: replay cannot make the first success."""
    policy = make_tiny("tiny:16x1", ["a b c d"], context=64, seed=0)
    before = {name: value.clone() for name, value in policy.state_dict().items() if hasattr(value, "clone")}
    learner = LanguageLearner(policy, learning_rate=1e-2)
    replay = SuccessReplay()
    for version in range(3):
        fresh = [group_of([0.0] * 8, version=version)]
        spliced = replay.splice(fresh, torch.Generator(), version=version)
        replay.store(fresh[0])
        assert not spliced.injected
        grpo.learn(CONFIG, SilentRun(), learner, spliced.groups, None)
    for name, value in before.items():
        assert torch.equal(policy.state_dict()[name], value)


def off_policy_gradient(mode, probability):
    """Gradient weight of a replayed action, sampled with probability 0.5, at its probability under the policy now."""
    replayed = episode(1.0, tokens=1, log_prob=torch.tensor(0.5).log().item(), source="replayed")
    group = [replayed, *group_of([0.0] * 7, log_prob=torch.tensor(probability).log().item())]
    learner = GradientKeeper(torch.tensor(probability).log().item())
    grpo.learn(CONFIG, SilentRun(), learner, [group], None, stored_is_old=mode == "behaviour")
    return learner.gradients[0][0].item() * 8


def test_recomputed_old_probabilities_weigh_a_replayed_action_alike_whatever_it_was_sampled_with():
    for probability in (0.05, 0.3, 0.64, 0.66, 0.95):
        torch.testing.assert_close(off_policy_gradient("recompute", probability), 2.47486, atol=1e-4, rtol=0)


def test_stored_ones_weigh_it_by_the_ratio_until_the_clip():
    for probability in (0.05, 0.3, 0.64):
        expected = 2.47486 * probability / 0.5
        torch.testing.assert_close(off_policy_gradient("behaviour", probability), expected, atol=1e-4, rtol=0)
    for probability in (0.66, 0.95):
        assert off_policy_gradient("behaviour", probability) == 0
