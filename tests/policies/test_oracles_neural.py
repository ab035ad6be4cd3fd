"""Neural oracles: members of a stack are what they are alone, and they disagree where rows are few."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_logs import SCHEMA, draw_choices, draw_log, greedy_regret

from peira.policies.oracles.neural import EnsembleOracle, MLPOracle


@pytest.mark.parametrize("kind", [MLPOracle, EnsembleOracle])
def test_what_holds_of_one_action_in_one_segment_is_learned(kind):
    oracle = kind(SCHEMA, hidden=32, epochs=8).fit(draw_log(6_000))
    assert greedy_regret(oracle, draw_choices(1_000, 7)) < 0.012


def test_a_member_learns_in_a_stack_what_it_learns_alone(monkeypatch):
    # The bootstrap samples of two stacks are drawn differently; each member counts every row once.
    monkeypatch.setattr(EnsembleOracle, "_counts", lambda self, rows, _: torch.ones(self.members, rows))
    rows, asked = draw_log(600), draw_choices(50, 7)
    three, one = (EnsembleOracle(SCHEMA, members=many, epochs=3, hidden=16).fit(rows) for many in (3, 1))
    np.testing.assert_allclose(three.predict_members(asked)[0], one.predict_members(asked)[0], atol=1e-4)
    assert np.nanmax(np.abs(three.predict_members(asked)[1] - one.predict_members(asked)[0])) > 0.01


def test_the_prediction_of_an_ensemble_is_the_mean_of_its_members():
    rows, asked = draw_log(600), draw_choices(50, 7)
    oracle = EnsembleOracle(SCHEMA, members=4, epochs=2, hidden=16).fit(rows)
    members = oracle.predict_members(asked)
    assert members.shape == (4, *asked.action.shape)
    np.testing.assert_allclose(members.mean(0), oracle.predict(asked), rtol=1e-6)


def test_each_member_counts_rows_as_a_bootstrap_sample_does():
    oracle = EnsembleOracle(SCHEMA, members=5)
    counts = oracle._counts(1_000, torch.Generator().manual_seed(0))
    assert (counts.sum(1) == 1_000).all()
    np.testing.assert_allclose((counts == 0).float().mean(1), np.exp(-1), atol=0.05)
    assert not torch.equal(counts[0], counts[1])


def test_members_disagree_where_rows_are_few():
    rows = draw_log(4_000)
    # All rows but a handful are of amounts below 4.
    few = (rows.choices.number[:, 0] < 4) | (np.arange(4_000) % 100 == 0)
    oracle = EnsembleOracle(SCHEMA, members=6, epochs=10, hidden=32).fit(rows.take(few))
    asked = draw_choices(1_000, 7)
    spread = np.nanmean(oracle.predict_members(asked).std(0), axis=1)
    amount = asked.number[:, 0]
    assert spread[amount > 6].mean() > 1.5 * spread[(amount > 2) & (amount < 4)].mean()


def test_the_seed_is_what_decides():
    rows, asked = draw_log(400), draw_choices(50, 7)

    def predicted(seed):
        return MLPOracle(SCHEMA, seed=seed, epochs=2, hidden=16).fit(rows).predict(asked)

    assert np.array_equal(predicted(1), predicted(1), equal_nan=True)
    assert not np.allclose(predicted(1), predicted(2), equal_nan=True)


def test_an_action_without_rows_is_the_mean_of_the_others():
    rows = draw_log(3_000)
    rows = rows.take(rows.action != 2)
    oracle = MLPOracle(SCHEMA, epochs=3, hidden=16).fit(rows)
    embedding = oracle._state["action"][0]
    torch.testing.assert_close(embedding[2], embedding[[0, 1, 3]].mean(0))
    assert embedding.abs().max() > 0.05
    predicted = oracle.predict(draw_choices(100, 7))
    assert ((predicted > 0.02) & (predicted < 0.98)).sum() == draw_choices(100, 7).eligible.sum()


def test_a_row_of_weight_0_is_not_learned_from():
    rows = draw_log(1_000)
    spoilt = replace(rows, reward=np.where(np.arange(1_000) % 2, rows.reward, 1.0 - rows.reward))
    weights = (np.arange(1_000) % 2).astype(float)
    options = {"epochs": 3, "hidden": 16, "batch_size": 1_000}
    first = MLPOracle(SCHEMA, **options).fit(rows, weights).predict(rows.choices)
    second = MLPOracle(SCHEMA, **options).fit(spoilt, weights).predict(rows.choices)
    assert np.array_equal(first, second, equal_nan=True)
    plain = MLPOracle(SCHEMA, **options).fit(spoilt).predict(rows.choices)
    assert not np.allclose(first, plain, equal_nan=True)


def test_patience_goes_back_to_the_best_epoch():
    rows = draw_log(300)
    noise = replace(rows, reward=np.random.default_rng(0).integers(0, 2, 300).astype(float))
    long = {"hidden": 64, "epochs": 150, "learning_rate": 1e-2, "weight_decay": 0.0}
    stopped = MLPOracle(SCHEMA, patience=3, **long).fit(noise).predict(noise.choices)
    memorised = MLPOracle(SCHEMA, **long).fit(noise).predict(noise.choices)
    assert np.nanstd(stopped) < 0.5 * np.nanstd(memorised)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="members: expected at least 1, got 0"):
        EnsembleOracle(SCHEMA, members=0)
    with pytest.raises(ValueError, match="patience: expected at least 1 epoch or None, got 0"):
        MLPOracle(SCHEMA, patience=0)
