"""What was sampled is what is trained on: the sampler's log-probabilities are those of one pass over whole episodes."""

import numpy as np
import pytest
import torch

from peira.experience.dialogue import Tokens
from peira.policies.compiled import can_compile
from peira.policies.lm.model import make_tiny, pack
from peira.policies.lm.sampler import ContextOverflow, Sampler

WORDS = 60
ROWS = 6


@pytest.fixture(scope="module")
def policy():
    return make_tiny("tiny:32x2", [" ".join(f"w{i}" for i in range(WORDS))], context=192, seed=0)


def many_turns(policy, *, compiled=False, keep_cache=True, temperature=1.0, turns=3, length=5):
    """Ragged episodes: rows differ in what they read, one is filled anew half way; every token with its log-prob."""
    sampler = Sampler(policy, ROWS, compiled=compiled, keep_cache=keep_cache, temperature=temperature)
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        sampler.begin(row, 100 + row)
    done, open_ = [], [([], [], []) for _ in range(ROWS)]
    last = {}
    for turn in range(turns):
        rows = [row for row in range(ROWS) if (row + turn) % 4]  # Some sit a turn out.
        if turn == 1:
            done.append(open_[2])
            open_[2] = ([], [], [])
            last.pop(2, None)
            sampler.begin(2, 999)
            rows = sorted({*rows, 2})
        chunks = []
        for row in rows:
            read = rng.integers(5, WORDS, rng.integers(1, 9)).tolist()
            chunks.append([*([last[row]] if row in last else []), *read])
            open_[row][0].extend(read)
            open_[row][1].extend([False] * len(read))
        tokens, log_probs = sampler.feed(rows, chunks)
        for step in range(length):
            for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
                open_[row][0].append(token)
                open_[row][1].append(True)
                open_[row][2].append(log_prob)
                last[row] = token
            if step < length - 1:
                tokens, log_probs = sampler.step(rows, tokens)
    episodes = [Tokens(np.array(i), np.array(m), np.array(p, np.float32)) for i, m, p in [*done, *open_]]
    return [episode for episode in episodes if len(episode)]


MODES = [{}, {"keep_cache": False}, {"compiled": True}]


@pytest.mark.parametrize("mode", MODES, ids=["cache", "no cache", "compiled"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_parity_with_a_packed_pass(policy, mode, temperature):
    if mode.get("compiled") and not can_compile():
        pytest.skip("needs a C++ compiler")
    episodes = many_turns(policy, temperature=temperature, **mode)
    with torch.no_grad():
        scored = policy.log_prob(episodes, temperature=temperature)
    sampled = torch.from_numpy(np.concatenate([episode.log_probs for episode in episodes]))
    assert len(sampled) > 50
    torch.testing.assert_close(scored, sampled, atol=1e-5, rtol=0)


def test_the_same_is_sampled_with_and_without_cache(policy):
    kept, anew = many_turns(policy), many_turns(policy, keep_cache=False)
    for one, other in zip(kept, anew, strict=True):
        assert one.ids.tolist() == other.ids.tolist()


def test_a_row_samples_by_its_seed_whatever_is_beside_it(policy):
    prompt = [7, 8, 9]

    def sample(rows, row, seed=5):
        sampler = Sampler(policy, rows)
        for other in range(rows):
            sampler.begin(other, seed if other == row else 1000 + other)
        tokens, _ = sampler.feed(list(range(rows)), [prompt] * rows)
        found = [tokens[row]]
        for _ in range(10):
            tokens, _ = sampler.step(list(range(rows)), tokens)
            found.append(tokens[row])
        return found

    assert sample(1, 0) == sample(5, 3)
    assert sample(5, 3) != sample(5, 3, seed=6)


def test_samples_have_the_probabilities_of_the_model(policy):
    """4 000 rows with one prompt: counts match softmax within four standard errors."""
    rows, prompt = 4000, [9, 11, 13]
    sampler = Sampler(policy, rows)
    for row in range(rows):
        sampler.begin(row, row)
    tokens, log_probs = sampler.feed(list(range(rows)), [prompt] * rows)
    expected = torch.zeros(len(policy.tokenizer))
    expected[tokens] = torch.from_numpy(log_probs).exp()
    counts = np.bincount(tokens, minlength=len(expected))
    for token in np.flatnonzero(expected.numpy() > 0.01):
        p = expected[token].item()
        assert abs(counts[token] / rows - p) < 4 * np.sqrt(p * (1 - p) / rows)


def test_temperature_nought_takes_the_most_likely_token(policy):
    sampler = Sampler(policy, 1, temperature=0)
    sampler.begin(0, 3)
    token, log_prob = sampler.feed([0], [[7, 8, 9]])
    logits = policy.model(torch.tensor([[7, 8, 9]])).logits[0, -1]
    assert token[0] == logits.argmax()
    assert log_prob[0] == pytest.approx(logits.log_softmax(0).max().item(), abs=1e-5)


def test_context_is_never_passed_silently(policy):
    sampler = Sampler(policy, 1)
    sampler.begin(0, 0)
    sampler.feed([0], [[7] * 190])
    with pytest.raises(ContextOverflow, match=r"an episode of 193 tokens does not fit the context of 192"):
        sampler.feed([0], [[7, 8, 9]])
    assert sampler.length[0] == 190


def test_the_cache_grows_with_the_episode(policy):
    """Beyond the first 128 places keys and values are moved, and the sampled log-probabilities stay right."""
    sampler = Sampler(policy, 2)
    for row in range(2):
        sampler.begin(row, row)
    prompt = np.random.default_rng(1).integers(5, WORDS, 120).tolist()
    tokens, log_probs = sampler.feed([0, 1], [prompt, prompt[:40]])
    ids, found = [int(tokens[0])], [log_probs[0]]
    for _ in range(30):
        tokens, log_probs = sampler.step([0, 1], tokens)
        ids.append(int(tokens[0]))
        found.append(log_probs[0])
    marks = np.array([False] * len(prompt) + [True] * len(ids))
    episode = Tokens(np.array(prompt + ids), marks, np.array(found, np.float32))
    with torch.no_grad():
        torch.testing.assert_close(
            policy.log_prob([episode]), torch.from_numpy(episode.log_probs), atol=1e-5, rtol=0
        )


def test_a_cleared_sampler_is_as_a_new_one(policy):
    """A long episode lets the cache grow; what comes after `clear` is computed in the small one again."""
    used, new = Sampler(policy, 1), Sampler(policy, 1)
    used.begin(0, 1)
    used.feed([0], [[7] * 150])
    assert used.capacity > new.capacity
    used.clear()
    assert used.capacity == new.capacity
    for sampler in (used, new):
        sampler.begin(0, 3)
    for one, other in zip(used.feed([0], [[7, 8, 9]]), new.feed([0], [[7, 8, 9]]), strict=True):
        assert one.tolist() == other.tolist()


def test_attempts_at_one_task_read_their_prompt_once(policy, monkeypatch):
    """Rows that begin alike get copies of what the first one read; each goes on by its own seed."""
    prompts = [[7, 8, 9, 10], [7, 8, 9, 10], [11, 12], [7, 8, 9, 10]]
    together = Sampler(policy, len(prompts))
    for row in range(len(prompts)):
        together.begin(row, row)
    read = []
    logits = policy.logits
    monkeypatch.setattr(
        policy, "logits", lambda ids, *rest, **also: read.append(len(ids)) or logits(ids, *rest, **also)
    )
    tokens, log_probs = together.feed(range(4), prompts)
    assert read == [2]
    tokens_2, log_probs_2 = together.step(range(4), tokens)
    for row, prompt in enumerate(prompts):
        alone = Sampler(policy, 1)
        alone.begin(0, row)
        token, log_prob = alone.feed([0], [prompt])
        assert token[0] == tokens[row]
        assert log_prob[0] == pytest.approx(log_probs[row], abs=1e-5)
        token, log_prob = alone.step([0], token)
        assert token[0] == tokens_2[row]
        assert log_prob[0] == pytest.approx(log_probs_2[row], abs=1e-5)


def test_packing_lays_every_token_once_and_lets_none_look_at_another_sequence():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 99, n) for n in (5, 3, 7, 2, 6, 1)]
    packed = pack(sequences, 8)
    assert packed.ids.shape[0] == 3  # 24 tokens in rows of 8.
    ids, positions, mask = packed.inputs()
    for place, values in enumerate(sequences):
        at = slice(packed.start[place], packed.start[place] + len(values))
        row = packed.row[place]
        assert ids[row, at].tolist() == values.tolist()
        assert positions[row, at].tolist() == list(range(len(values)))
        seen = mask[row, 0, at]
        assert seen[:, at].tolist() == np.tri(len(values), dtype=bool).tolist()
        assert seen.sum() == len(values) * (len(values) + 1) / 2
    with pytest.raises(ValueError, match="a sequence of 7 tokens does not fit a row of 6"):
        pack(sequences, 6)
