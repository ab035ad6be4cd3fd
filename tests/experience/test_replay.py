import pytest
import torch

from peira.experience.replay import ReplayRing


def make_block(start: int, length: int, envs: int = 2, ends: tuple[tuple[int, int], ...] = ()):
    """Steps numbered by time and env; `ends` are the (time, env) at which an episode terminates."""
    time = torch.arange(start, start + length)[:, None].expand(length, envs)
    terminated = torch.zeros(length, envs, dtype=torch.bool)
    for at, env in ends:
        if start <= at < start + length:
            terminated[at - start, env] = True
    return {
        "time": time.clone(),
        "env": torch.arange(envs).expand(length, envs).clone(),
        "observation": torch.stack([time, -time], -1).float(),
        "terminated": terminated,
        "truncated": torch.zeros_like(terminated),
    }


def held(ring):
    sample = ring.sample(5000, torch.Generator().manual_seed(0))
    return set(zip(sample["time"].tolist(), sample["env"].tolist(), strict=True))


def test_the_newest_steps_stay_and_the_oldest_go():
    ring = ReplayRing(20)
    for start in range(0, 28, 7):
        ring.add(make_block(start, 7))
        newest = range(max(0, start + 7 - 10), start + 7)
        assert len(ring) == 2 * len(newest)
        assert held(ring) == {(t, env) for t in newest for env in range(2)}


def test_of_a_batch_longer_than_the_ring_the_newest_part_stays():
    ring = ReplayRing(10)
    ring.add(make_block(0, 3))
    ring.add(make_block(3, 23))
    assert {t for t, _ in held(ring)} == set(range(21, 26))
    ring.add(make_block(26, 2))
    assert {t for t, _ in held(ring)} == set(range(23, 28))


def test_sampling_is_uniform_and_given_by_the_generator():
    ring = ReplayRing(40)
    ring.add(make_block(0, 20))
    first = ring.sample(40_000, torch.Generator().manual_seed(1))
    again = ring.sample(40_000, torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    counts = torch.bincount(first["time"] * 2 + first["env"], minlength=40).float()
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()
    assert torch.equal(first["observation"][:, 0], first["time"].float())


@pytest.mark.parametrize("added", [9, 10, 13, 27])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_windows_are_all_those_within_one_episode_and_one_stream(added, length):
    ends = ((3, 0), (8, 0), (8, 1), (17, 1), (20, 0))
    ring = ReplayRing(20)
    for start in range(0, added, 3):
        ring.add(make_block(start, min(3, added - start), ends=ends))
    windows = ring.sample_windows(4000, length, torch.Generator().manual_seed(0))
    got = {
        (row[0], env[0]) for row, env in zip(windows["time"].tolist(), windows["env"].tolist(), strict=True)
    }
    assert (windows["time"].diff(dim=1) == 1).all()
    assert (windows["env"] == windows["env"][:, :1]).all()
    expected = {
        (t, env)
        for t in range(max(0, added - 10), added - length + 1)
        for env in range(2)
        if not any(at in range(t, t + length - 1) for at, where in ends if where == env)
    }
    assert got == expected


def test_windows_that_cross_an_end_are_masked_after_it():
    ring = ReplayRing(20)
    ring.add(make_block(0, 10, ends=((4, 0),)))
    windows = ring.sample_windows(500, 3, torch.Generator().manual_seed(0), cross_episodes=True)
    for times, env, mask in zip(
        windows["time"].tolist(), windows["env"].tolist(), windows["mask"].tolist(), strict=True
    ):
        assert mask == [not (env[0] == 0 and times[0] <= 4 < t) for t in times]
    assert not windows["mask"].all()


def test_a_restored_ring_goes_on_as_if_nothing_had_happened():
    ring, resumed = ReplayRing(20), ReplayRing(20)
    ring.add(make_block(0, 13))
    resumed.load_state_dict(ring.state_dict())
    for each in (ring, resumed):
        each.add(make_block(13, 4))
    first, again = (each.sample(50, torch.Generator().manual_seed(0)) for each in (ring, resumed))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_does_not_fit_is_refused_with_what_came():
    with pytest.raises(ValueError, match="capacity: expected at least 1 step, came 0"):
        ReplayRing(0)
    with pytest.raises(ValueError, match="capacity: 1 steps cannot hold one of each of 2 streams"):
        ReplayRing(1).add(make_block(0, 1))
    ring = ReplayRing(20, spec={"reward": ((), torch.float32)})
    with pytest.raises(ValueError, match="sample: the ring is empty"):
        ring.sample(1, torch.Generator())
    with pytest.raises(ValueError, match=r"reward: expected torch.float32 \[3, 2\], came torch.float64"):
        ring.add({"reward": torch.zeros(3, 2, dtype=torch.float64)})
    ring.add({"reward": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="terminated: windows need to know"):
        ring.sample_windows(1, 2, torch.Generator())
    ring = ReplayRing(20)
    ring.add(make_block(0, 3))
    with pytest.raises(ValueError, match="length: no 4 consecutive steps are held"):
        ring.sample_windows(1, 4, torch.Generator())
