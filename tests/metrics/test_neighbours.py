import pytest
import torch

from openedm.metrics import neighbours


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(x: torch.Tensor, y: torch.Tensor, k: int, k_density: int) -> tuple[float, float, float, float]:
    """The definitions, with all distances at once."""

    def radii(z, k):
        return (z[:, None] - z[None]).norm(dim=-1).sort(1).values[:, k]

    between = (x[:, None] - y[None]).norm(dim=-1)
    balls = between <= radii(y, k_density)
    return (
        float((between <= radii(y, k)).any(1).double().mean()),
        float((between <= radii(x, k)[:, None]).any(0).double().mean()),
        float(balls.sum(1).double().mean() / k_density),
        float(balls.any(0).double().mean()),
    )


def scores(x, y, **options):
    found = neighbours(x, y, **options)
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("block", [3, 16, 1000])
def test_tile_by_tile_it_is_what_the_definitions_say(block):
    x, y = normal(50, 4, seed=0).double() + 0.3, normal(70, 4, seed=1).double()
    assert scores(x, y, block=block) == pytest.approx(naive(x, y, 3, 5), abs=1e-12)
    assert scores(x, y, k=2, k_density=7, block=block) == pytest.approx(naive(x, y, 2, 7), abs=1e-12)


def test_of_one_distribution_all_four_are_as_expected():
    x, y = normal(2000, 2, seed=0), normal(2000, 2, seed=1)
    precision, recall, density, coverage = scores(x, y)
    assert min(precision, recall) > 0.9
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.02)


def test_a_lost_mode_costs_recall_and_coverage_and_an_invented_one_precision_and_density():
    one, other = normal(300, 2, seed=0), normal(300, 2, seed=1) + 50
    both = torch.cat([one, other])
    fresh = normal(300, 2, seed=2)
    lost = scores(fresh, both)
    assert lost[0] > 0.9
    assert lost[1] == pytest.approx(0.5, abs=0.05)
    assert lost[3] == pytest.approx(0.5, abs=0.05)
    invented = scores(torch.cat([fresh, normal(300, 2, seed=3) + 50]), one)
    assert invented[0] == pytest.approx(0.5, abs=0.05)
    assert invented[1] > 0.9
    assert invented[2] == pytest.approx(0.5, abs=0.05)


def test_one_far_outlier_among_real_images_raises_precision_but_hardly_density():
    y = torch.cat([normal(200, 2, seed=0), torch.tensor([[100.0, 0.0]])])
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 50 + 20
    precision, _, density, _ = scores(x, y)
    assert precision > 0.8  # the outlier's ball reaches back to the rest
    assert density < 0.25


def test_copies_of_the_reference_are_precise_and_cover_it_far_from_the_origin_too():
    y = 1e4 + normal(100, 8, seed=0)
    assert scores(y.clone(), y)[:2] == (1.0, 1.0)
    assert scores(y.clone(), y)[3] == 1.0
    same = torch.ones(20, 3)
    assert scores(same, same) == (1.0, 1.0, 4.0, 1.0)


def test_what_cannot_be_compared_is_refused(without_type_checker):
    x = normal(9, 2, seed=0)
    for arguments, message in [
        ((x, normal(9, 3, seed=0)), "as many features, got 2 and 3"),
        ((x[:3], x), "number of samples must be >= 4, got 3"),
        ((x, x[:5]), "number of rows of reference must be >= 6, got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            neighbours(*arguments)
    with pytest.raises(ValueError, match="k must be >= 1"):
        neighbours(x, x, k=0)
