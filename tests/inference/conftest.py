import pytest

from fitted import tiny_posterior
from openedm.inference.trained import DenoiserPosterior


@pytest.fixture(scope="session")
def two_moons() -> DenoiserPosterior:
    """Fitted to 400 simulations of two moons, far from well."""
    return tiny_posterior("two_moons")
