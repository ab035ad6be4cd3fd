import numpy as np
import pytest
from scipy.stats import kstest, truncnorm

from peira.environments.truncated_normal import draw, log_density


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (1.0, 0.4), (-0.7, 0.05)])
def test_draws_and_densities_are_those_of_scipy(mean, std):
    reference = truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    drawn = draw(np.full(5000, mean), std, 1.0, np.random.default_rng(0))
    assert np.abs(drawn).max() <= 1
    assert kstest(drawn, reference.cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        log_density(drawn, np.full(5000, mean), std, 1.0), reference.logpdf(drawn), atol=1e-9
    )
