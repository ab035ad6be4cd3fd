"""What sequences begin with alike is computed once, and nothing but time changes by it."""

import numpy as np
import pytest
import torch

from peira.experience.dialogue import Tokens
from peira.policies.lm.attention import Families, Layout, _AttendInFamilies
from peira.policies.lm.model import make_tiny

# Members and common tokens of each family: large and small, alone, and with nothing in common.
FAMILIES = ((3, 20), (1, 7), (4, 33), (2, 3), (1, 1))


def sequences(families, rng):
    for members, common in families:
        beginning = rng.integers(5, 30, common)
        for number in range(members):
            rest = rng.integers(5, 30, rng.integers(2, 30))
            rest[0] = 5 + number  # So that no two go on alike.
            yield np.concatenate([beginning, rest])


def test_neighbours_that_begin_alike_share_their_beginning():
    rng = np.random.default_rng(0)
    given = list(sequences(FAMILIES, rng))
    families = Families.of(given)
    assert families.family.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4]
    assert families.shared.tolist() == [20, 0, 33, 3, 0]
    assert len(families.ids) == sum(map(len, given)) - 2 * 20 - 3 * 33 - 3
    for place, sequence in enumerate(given):
        marks = [np.ones(len(other), bool) & (other is sequence) for other in given]
        at = families.places(marks)
        assert families.ids[at].tolist() == sequence.tolist()
        assert families.positions[at].tolist() == list(range(len(sequence)))
        assert families.length[place] == len(sequence)
        ahead = [marks_of & (np.arange(len(marks_of)) > 0) for marks_of in marks]
        assert families.ids[families.places_before(ahead)].tolist() == sequence[:-1].tolist()


def test_a_family_ends_where_going_on_would_save_less():
    """Two pairs with long beginnings of their own, which all begin with the same token."""
    first, second = np.array([1, 2, 3, 4, 5, 6]), np.array([1, 9, 8, 7, 6, 5])
    given = [np.append(first, 7), np.append(first, 8), np.append(second, 7), np.append(second, 8)]
    families = Families.of(given)
    assert families.family.tolist() == [0, 0, 1, 1]
    assert families.shared.tolist() == [6, 6]


def test_sequences_that_are_the_same_keep_a_token_of_their_own():
    families = Families.of([np.array([4, 5, 6])] * 3)
    assert families.shared.tolist() == [2]
    assert families.ids.tolist() == [4, 5, 6, 6, 6]


def test_log_probs_and_gradient_are_those_of_whole_sequences():
    policy = make_tiny("tiny:32x2", [" ".join(f"w{i}" for i in range(30))], context=64, seed=0)
    rng = np.random.default_rng(1)
    episodes = []
    for ids in sequences(FAMILIES, rng):
        sampled = rng.random(len(ids)) < 0.5  # Some of them in what is shared.
        sampled[0], sampled[-1] = False, True
        episodes.append(Tokens(ids, sampled, np.zeros(sampled.sum(), np.float32)))
    weight = torch.rand(sum(int(episode.sampled.sum()) for episode in episodes))
    assert policy._shares_beginnings
    found = []
    for shares in (True, False):
        policy._shares_beginnings = shares
        policy.zero_grad()
        log_prob = policy.log_prob(episodes, temperature=0.7)
        (log_prob * weight).sum().backward()
        found.append((log_prob.detach(), torch.cat([p.grad.flatten() for p in policy.trained()])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("families", [FAMILIES, ((2, 4), (2, 4)), ((1, 2), (1, 3)), ((3, 6),)], ids=str)
def test_its_gradient_is_that_of_its_value(families):
    rng = np.random.default_rng(2)
    found = Families.of([sequence[:40] for sequence in sequences(families, rng)])
    heads, groups, size = 4, 2, 3
    layout = Layout(found, heads, groups)
    generator = torch.Generator().manual_seed(0)
    tokens = len(found.ids)
    query, key, value = (
        torch.randn(tokens * parts, size, generator=generator, dtype=torch.float64).requires_grad_()
        for parts in (heads, groups, groups)
    )

    def attend(query, key, value):
        return _AttendInFamilies.apply(query, key, value, layout, 0.6)

    assert torch.autograd.gradcheck(attend, (query, key, value), fast_mode=True)
