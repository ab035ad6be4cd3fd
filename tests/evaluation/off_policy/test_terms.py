import numpy as np
import pytest

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.terms import Terms, add, total
from peira.evaluation.off_policy.weights import Block

EPISODES, STEPS, GAMMA = 40, 60, 0.97


@pytest.fixture
def log():
    """Ragged episodes whose weights run over hundreds of powers of e, up and down, with some that are 0."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, STEPS + 1, EPISODES)
    length[:3] = STEPS, 1, 1
    alive = np.arange(STEPS) < length[:, None]
    log_ratio = np.where(alive, rng.normal(0, 150, (EPISODES, STEPS)), 0.0)
    log_ratio[5:8, 0] = -np.inf
    reward = np.where(alive, rng.normal(size=(EPISODES, STEPS)), 0.0)
    q, v = (np.where(alive, rng.normal(size=(EPISODES, STEPS)), 0.0) for _ in range(2))
    return Block(reward, log_ratio, length), q, v


def cut(log, rows):
    """The rows as a block that is no wider than its longest episode."""
    block, q, v = log
    width = block.length[rows].max()
    narrow = Block(block.reward[rows, :width], block.log_ratio[rows, :width], block.length[rows])
    return narrow, q[rows, :width], v[rows, :width]


ESTIMATORS = {
    "pdis": lambda block, q, v: sequential.pdis(block, GAMMA),
    "wis": lambda block, q, v: sequential.wis(block, GAMMA),
    "wpdis": lambda block, q, v: sequential.wpdis(block, GAMMA),
    "wdr": lambda block, q, v: sequential.wdr(block, q, v, GAMMA),
}


def test_value_influence_and_error_by_hand():
    terms = Terms(
        np.array([1.0, 2.0, 6.0]),
        np.array([[1.0], [2.0], [3.0]]),
        np.array([[1.0], [1.0], [2.0]]),
        np.array([700.0]),
    )
    # 3 + 6/4; numerator − 1.5 denominator = (−.5, .5, 0), divided by the mean denominator 4/3.
    assert terms.value() == pytest.approx(4.5)
    np.testing.assert_allclose(terms.influence(), [-2 - 0.375, -1 + 0.375, 3.0])
    deviation = np.array([-2.375, -0.625, 3.0])
    assert terms.standard_error() == pytest.approx(np.sqrt((deviation**2).sum() / 2 / 3))


def test_a_mean_has_no_ratios():
    terms = Terms.mean(np.array([1.0, 3.0]))
    assert terms.value() == 2.0
    assert terms.standard_error() == pytest.approx(1.0)
    assert total([terms, Terms.mean(np.array([5.0]))]).value == pytest.approx(3.0)


def test_influence_is_the_derivative_by_the_weight_of_an_episode(log):
    """Numerically: d value / d(share of episode i) at equal shares."""
    terms = ESTIMATORS["wdr"](*cut(log, np.arange(10, 30)))
    step = 1e-6

    def value(share):
        return share @ terms.plain + ((share @ terms.numerator) / (share @ terms.denominator)).sum()

    even = np.full(20, 1 / 20)
    for i in range(20):
        toward = (1 - step) * even + step * (np.arange(20) == i)
        away = (1 + step) * even - step * (np.arange(20) == i)
        slope = (value(toward) - value(away)) / (2 * step)
        assert slope == pytest.approx(terms.influence()[i], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [(40,), (7, 33), (1,) * 40, (13, 13, 14)])
def test_blocks_of_any_size_give_what_one_block_gives(log, estimator, sizes):
    order = np.argsort(-log[0].length, kind="stable")
    blocks = np.split(order, np.cumsum(sizes)[:-1])
    whole = ESTIMATORS[estimator](*log)
    parts = total([ESTIMATORS[estimator](*cut(log, rows)) for rows in blocks])
    assert np.isfinite(parts.value)
    assert parts.value == pytest.approx(whole.value(), rel=1e-10)
    assert parts.standard_error == pytest.approx(whole.standard_error(), rel=1e-10)
    np.testing.assert_allclose(
        parts.influence, whole.influence()[order], rtol=1e-8, atol=1e-10 * abs(whole.value())
    )


def test_blocks_may_come_in_any_order_and_anew(log):
    blocks = [ESTIMATORS["wpdis"](*cut(log, rows)) for rows in np.split(np.argsort(log[0].length), 8)]
    forward, backward = total(blocks), total(lambda: reversed(blocks))
    assert forward.value == pytest.approx(backward.value, rel=1e-12)
    assert forward.standard_error == pytest.approx(backward.standard_error, rel=1e-12)


def test_one_scale_for_all_columns_would_lose_the_weights(log):
    """The easy imitation: a single shift. Late columns then decide, and early ones vanish."""
    block, _, _ = log
    log_weight = np.cumsum(block.log_ratio, axis=1)
    weight = np.exp(log_weight - log_weight.max())
    with np.errstate(invalid="ignore"):
        naive = ((weight * block.reward).sum(0) / weight.sum(0)) @ block.discount(GAMMA)
    assert not np.isclose(naive, sequential.wpdis(block, GAMMA).value(), rtol=1e-3)


def test_the_factor_takes_sums_to_the_common_scale(log):
    order = np.argsort(log[0].length)
    blocks = [ESTIMATORS["wpdis"](*cut(log, rows)) for rows in np.split(order, [3, 12])]
    common = add(blocks).log_scale
    numerator, denominator = np.zeros(STEPS), np.zeros(STEPS)
    for terms in blocks:
        width, factor = terms.numerator.shape[1], terms.factor(common)
        numerator[:width] += terms.numerator.sum(0) * factor[:width]
        denominator[:width] += terms.denominator.sum(0) * factor[:width]
        denominator[width:] += terms.denominator[:, -1].sum() * factor[width:]
    assert (numerator / denominator).sum() == pytest.approx(ESTIMATORS["wpdis"](*log).value(), rel=1e-10)


def test_a_block_without_weight_does_not_disturb_another():
    """Its log scale is −∞, while the other's weights are far below e^−745."""
    none = Block(np.ones((2, 3)), np.array([[-np.inf, 0.0, 0.0]] * 2), np.array([3, 3]))
    faint = Block(np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]]), np.full((2, 3), -900.0), np.array([3, 3]))
    assert total([sequential.wpdis(none, 1.0), sequential.wpdis(faint, 1.0)]).value == pytest.approx(
        2.0 + 2.0 + 2.0
    )


@pytest.mark.filterwarnings("error")
def test_a_normaliser_without_weight_gives_no_number_and_no_warning():
    none = Block(np.ones((2, 1)), np.full((2, 1), -np.inf), np.array([1, 1]))
    terms = sequential.wis(none, 1.0)
    assert np.isnan([terms.value(), terms.standard_error(), total([terms, terms]).value]).all()


def test_one_episode_has_no_standard_error():
    assert np.isnan(Terms.mean(np.array([1.0])).standard_error())


def test_no_block_is_refused():
    with pytest.raises(ValueError, match="expected at least one block of episodes, got none"):
        total([])
