"""Test 7 of ``pgd.md`` 8: which sets are in the buffer after k refreshes, and that refreshing alone changes nothing."""

from collections import Counter

import pytest
import torch

from peira.experience.batch import SOURCE_CODES
from peira.experience.schema import Source
from peira.experience.transitions import TransitionLog
from peira.sources.synthetic import MixedBuffer, SyntheticSet, distinct_rows, equal_parts, mix


def log_of(values):
    rows = len(values)
    return TransitionLog(
        observation=values[:, None].float(),
        action=values[:, None].float(),
        reward=values.float(),
        next_observation=values[:, None].float(),
        terminated=torch.ones(rows, dtype=torch.bool),
        truncated=torch.zeros(rows, dtype=torch.bool),
        first=torch.arange(rows + 1),
    )


def set_of(version, rows=50, values=None):
    values = torch.full((rows,), float(version or 0)) if values is None else values
    source = Source.DREAMED if version is None else Source.GUIDED
    return SyntheticSet(log_of(values), source, "actor", version, {"seed": 0})


REAL = log_of(torch.arange(40) + 1000)


@pytest.mark.parametrize("lifetime", [1, 3])
def test_the_newest_sets_are_there_and_no_others(lifetime):
    buffer = MixedBuffer(REAL, batch_size=32, synthetic=30, refresh_every=10, lifetime=lifetime)
    for k in range(8):
        assert buffer.due(10 * k)
        buffer.refresh(set_of(k), 10 * k)
        assert not buffer.due(10 * k) and not buffer.due(10 * k + 9)
        alive = list(range(max(0, k - lifetime + 1), k + 1))
        assert buffer.versions() == alive
        source, version = buffer.provenance()
        assert set(version[40:].tolist()) == set(alive) and set(version[:40].tolist()) == {-1}
        assert set(source[:40].tolist()) == {SOURCE_CODES[Source.LOGGED]}
        assert buffer.log().rows == 40 + 50 * len(alive)


def test_each_set_gives_an_equal_part_of_every_batch():
    buffer = MixedBuffer(REAL, batch_size=32, synthetic=30, refresh_every=10, lifetime=3)
    for k in range(3):
        buffer.refresh(set_of(k), 10 * k)
    rows = buffer.rows(200, torch.Generator().manual_seed(0))
    assert rows.shape == (200, 32)
    _, version = buffer.provenance()
    for batch in version[rows].tolist():
        assert Counter(batch) == {-1: 2, 0: 10, 1: 10, 2: 10}
    assert all(len(set(batch)) == 32 for batch in rows.tolist())
    assert set(rows.flatten().tolist()) == set(range(190))
    assert buffer.shares() == pytest.approx({"share_logged": 2 / 32, "share_guided": 30 / 32})


def test_unguided_refreshes_do_not_change_what_is_learned_from():
    """λ = 0: new sets are new draws from one law, whose mean and spread batches have however often they are renewed."""
    generator = torch.Generator().manual_seed(0)
    moments = []
    for refreshes in (1, 12):
        buffer = MixedBuffer(REAL, batch_size=256, synthetic=256, refresh_every=1, lifetime=2)
        seen = []
        for k in range(refreshes):
            drawn = torch.randn(5000, generator=generator)
            buffer.refresh(set_of(None, values=drawn), k)
            rows = buffer.rows(12 // refreshes, generator)
            seen.append(buffer.log().observation[rows].flatten())
        seen = torch.cat(seen)
        moments.append((seen.mean().item(), seen.std().item()))
    assert moments[0] == pytest.approx(moments[1], abs=0.1)
    # A guided refresh does change it.
    buffer.refresh(set_of(5, values=torch.randn(5000, generator=generator) + 2.0), 12)
    assert buffer.log().observation[buffer.rows(4, generator)].mean().item() > 0.8


def test_a_buffer_comes_back_as_it_was():
    buffer = MixedBuffer(REAL, batch_size=32, synthetic=30, refresh_every=10, lifetime=2)
    for k in range(3):
        buffer.refresh(set_of(k), 10 * k)
    again = MixedBuffer(REAL, batch_size=32, synthetic=30, refresh_every=10, lifetime=2)
    again.load_state_dict(buffer.state_dict())
    assert again.versions() == [1, 2] and not again.due(29) and again.due(30)
    rows = [each.rows(3, torch.Generator().manual_seed(0)) for each in (buffer, again)]
    assert torch.equal(*rows)
    assert torch.equal(buffer.log().action, again.log().action)


def test_mix_is_a_buffer_with_a_share():
    buffer = mix(REAL, [set_of(3, rows=300)], 240 / 256, 10_000)
    assert (buffer.synthetic, buffer.batch_size, buffer.versions()) == (240, 256, [3])
    with pytest.raises(ValueError, match=r"ratio: expected 0 to 1, the share of synthetic rows, got 1\.5"):
        mix(REAL, [], 1.5, 10)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="batch_size: 41 distinct real rows are asked for, the log has 40"):
        MixedBuffer(REAL, batch_size=41, synthetic=0)
    with pytest.raises(
        ValueError, match="synthetic: a batch holds 60 distinct synthetic rows, but a set has only 50"
    ):
        MixedBuffer(REAL, batch_size=64, synthetic=60).refresh(set_of(0))
    with pytest.raises(ValueError, match="synthetic: there is no set yet"):
        MixedBuffer(REAL, batch_size=32, synthetic=30).rows(1, torch.Generator())
    with pytest.raises(ValueError, match="synthetic: expected 0 to batch_size=8, got 9"):
        MixedBuffer(REAL, batch_size=8, synthetic=9)


@pytest.mark.parametrize(("count", "rows"), [(5, 6), (5, 5), (40, 100_000), (0, 3)])
def test_rows_of_a_batch_are_distinct_and_uniform(count, rows):
    drawn = distinct_rows(400, count, rows, torch.Generator().manual_seed(0))
    assert drawn.shape == (400, count)
    assert all(len(set(batch)) == count for batch in drawn.tolist())
    if rows == 6:
        share = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
        torch.testing.assert_close(share, torch.full((6,), 1 / 6), atol=0.02, rtol=0)


def test_parts_are_as_equal_as_can_be():
    assert equal_parts(10, 4) == [4, 3, 3]
    assert equal_parts(8, 8) == [8]
