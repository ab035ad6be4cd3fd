"""GRPO's pieces against values worked out by hand: weights of tokens, KL estimate, truncated weights, whole updates."""

import math

import pytest
import torch
from laid_batches import GradientKeeper, SilentRun, episode

from peira.credit.group_relative import Laid
from peira.learners.grpo import clipped_loss, k3, token_weights, truncated_weights
from peira.recipes import grpo
from peira.tasks.order import TaskOrder

LENGTHS = torch.tensor([1, 3, 0, 4])
ALL = torch.ones(4, dtype=torch.bool)


def test_sequence_weights_are_a_mean_over_tokens_then_episodes():
    weight = token_weights(LENGTHS, ALL, aggregation="sequence")
    expected = [1 / 3] + [1 / 9] * 3 + [1 / 12] * 4  # The episode without tokens does not count.
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_token_weights_are_a_mean_over_all_tokens():
    weight = token_weights(LENGTHS, ALL, aggregation="token")
    torch.testing.assert_close(weight, torch.full((8,), 1 / 8))


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_what_is_not_counted_has_no_weight_and_the_rest_sums_to_one(aggregation):
    counted = torch.tensor([True, False, True, True])
    weight = token_weights(LENGTHS, counted, aggregation=aggregation)
    assert weight[1:4].eq(0).all()
    assert weight.sum().item() == pytest.approx(1.0)
    assert token_weights(LENGTHS, ~ALL, aggregation=aggregation).eq(0).all()


def test_k3_is_unbiased_for_the_divergence_and_never_negative():
    """Against Σ π log(π/ρ) over three actions."""
    policy, reference = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(policy.log(), reference.log())
    assert (estimate >= 0).all()
    exact = (policy * (policy / reference).log()).sum()
    assert (policy * estimate).sum().item() == pytest.approx(exact.item(), rel=1e-5)


def test_truncated_weights():
    learner, sampler = torch.tensor([0.5, 0.1, 0.9]).log(), torch.tensor([0.5, 0.2, 0.3]).log()
    torch.testing.assert_close(truncated_weights(learner, sampler, 2.0), torch.tensor([1.0, 0.5, 2.0]))


def test_at_ratio_one_the_loss_is_minus_the_advantage_and_its_slope_the_policy_gradient():
    log_prob = torch.tensor([-1.0, -2.0, -0.1], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5, 0.0])
    loss = clipped_loss(log_prob, log_prob.detach(), advantage)
    torch.testing.assert_close(loss, -advantage)
    loss.sum().backward()
    torch.testing.assert_close(log_prob.grad, -advantage)


def group(scores, name, *, log_prob=-0.5, lengths=None):
    lengths = lengths or [2] * len(scores)
    return [
        episode(score, task=name, group=name, tokens=length, log_prob=log_prob)
        for score, length in zip(scores, lengths, strict=True)
    ]


def updated(config, groups, *, now=-0.5, reference=None):
    learner, run = GradientKeeper(now), SilentRun()
    grpo.learn(config, run, learner, groups, reference)
    return learner, run.row


LIVE, DEAD = [1.0, 0.0], [0.0, 0.0]
SMALL = {"groups": 2, "group_size": 2}
ADVANTAGE = 0.5 / (math.sqrt(0.5) + 1e-6)


def test_dead_groups_scale_the_step_down_unless_they_are_left_out():
    groups = [group(LIVE, "a"), group(DEAD, "b")]
    counting, _ = updated(grpo.Config(**SMALL, minibatches=1), groups)
    leaving_out, _ = updated(grpo.Config(**SMALL, minibatches=1, exclude_dead=True), groups)
    torch.testing.assert_close(counting.gradients[0][:2], torch.full((2,), ADVANTAGE / 2 / 4))
    torch.testing.assert_close(leaving_out.gradients[0][:2], torch.full((2,), ADVANTAGE / 2 / 2))
    assert counting.gradients[0][4:].eq(0).all()


def test_minibatches_keep_groups_whole_and_the_first_needs_no_pass_of_its_own():
    groups = [group(LIVE, "a"), group(LIVE, "b", lengths=[1, 3])]
    learner, _ = updated(grpo.Config(**SMALL, minibatches=2), groups)
    assert [len(gradient) for gradient in learner.gradients] == [4, 4]
    assert learner.passes == 1
    single, _ = updated(grpo.Config(**SMALL, minibatches=1), groups)
    assert single.passes == 0


def test_an_episode_whose_world_failed_is_left_out_of_loss_and_statistics():
    lost = group([*LIVE, 1.0], "a")
    lost[2].error, lost[2].ending = "gone", "env_error"
    learner, _ = updated(grpo.Config(groups=1, group_size=3, minibatches=1), [lost])
    (gradient,) = learner.gradients
    torch.testing.assert_close(gradient[:2], torch.full((2,), ADVANTAGE / 2 / 2))
    assert gradient[4:].eq(0).all()


def test_the_format_penalty_comes_off_the_reward():
    members = group(DEAD, "a")
    members[1].ending = "parse_error"
    laid = Laid.of([members], 0.5)
    assert laid.reward.tolist() == [0.0, -0.5]
    assert not laid.dead.any()
    assert Laid.of([members], 0.0).dead.all()


def test_kl_pulls_towards_the_reference():
    config = grpo.Config(**SMALL, minibatches=1, kl_coefficient=0.1)
    learner, row = updated(config, [group(DEAD, "a"), group(DEAD, "b")], reference=GradientKeeper(-0.2))
    expected = -0.1 * (1 - math.exp(-0.2 + 0.5)) / 2 / 4  # −β ∂k3/∂log π, weighted
    torch.testing.assert_close(learner.gradients[0], torch.full((8,), expected))
    assert row["kl_reference"] == pytest.approx(math.exp(0.3) - 1 - 0.3, rel=1e-4)


def test_a_sampler_that_differs_is_corrected_up_to_the_limit():
    groups = [group(LIVE, "a", log_prob=-1.5), group(DEAD, "b")]  # The learner gives e times as much.
    plain, row = updated(grpo.Config(**SMALL, minibatches=1), groups)
    limited, _ = updated(grpo.Config(**SMALL, minibatches=1, importance_limit=2.0), groups)
    torch.testing.assert_close(limited.gradients[0], 2.0 * plain.gradients[0])
    assert row["effective_sample_size"] < 1
    assert row["kl_behaviour_target"] > 0


def test_resampling_puts_live_groups_in_the_place_of_dead_ones():
    rounds = [[DEAD, LIVE], [LIVE, LIVE]]
    seen = []

    class Gathering:
        def generator(self, name):
            return torch.Generator()

        def episode_ids(self, number):
            return [str(place) for place in range(number)]

        def gathered_episodes(self, episodes):
            seen.append(len(episodes))

    def attempts(wanted):
        scores = rounds[len(seen)]
        found = [entry for place, kind in enumerate(scores) for entry in group(kind, str(place))]
        assert len(found) == len(wanted)
        return found

    config = grpo.Config(**SMALL, minibatches=1, resample=3)
    groups = grpo.gather(config, Gathering(), attempts, TaskOrder(["a", "b", "c", "d"], 2))
    assert [[entry.score for entry in members] for members in groups] == [LIVE, LIVE]
    assert seen == [4, 4]  # It stops as soon as there are enough.


def test_every_task_comes_once_before_any_comes_again():
    order, generator = TaskOrder("abcdefg", 3), torch.Generator().manual_seed(0)
    for _ in range(3):
        batches = [order.draw(generator), order.draw(generator)]
        assert len({task for batch in batches for task in batch}) == 6
    with pytest.raises(ValueError, match="groups: expected at most the number of tasks, 2, got 3"):
        TaskOrder("ab", 3)


def test_successes_alone_are_made_more_likely():
    """Without a baseline: every token of a success pulls with its weight, a failure's with nothing, nor an error's."""
    learner = GradientKeeper(-0.5)
    group = [episode(1.0), episode(0.0), episode(0.0, ending="parse_error"), episode(1.0, ending="env_error")]
    config = grpo.Config(groups=1, group_size=4, minibatches=1, success_only=True)
    grpo.learn(config, SilentRun(), learner, [group], None)
    (gradient,) = learner.gradients
    # Three episodes of two tokens are counted.
    assert gradient.tolist() == pytest.approx([1 / 6] * 2 + [0.0] * 6)


def test_without_a_baseline_no_group_is_dead():
    with pytest.raises(ValueError, match="exclude_dead: without a baseline no group is dead"):
        grpo.Config(success_only=True, exclude_dead=True)
