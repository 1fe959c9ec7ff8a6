import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openedm.data import Dataset, InMemory, measure


def data(samples: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return mean + std * torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.floats(-5, 5), st.floats(0.1, 10))
def test_the_measure_is_mean_and_standard_deviation_of_all_entries_whatever_the_batch(samples, batch, mean, std):
    x = data(samples, mean, std).float()
    found = measure(InMemory(x), batch_size=batch)
    assert found.mean == pytest.approx(x.double().mean().item(), abs=1e-12 * (1 + abs(mean)))
    assert found.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-12)
    assert found.count == samples


def test_a_large_offset_costs_no_precision():
    x = (torch.arange(1000) % 2).float().view(-1, 1) + 2.0**20
    # The running mean is rounded to 2⁻³³ ≈ 1e-10 there, and so is the result at worst.
    assert measure(InMemory(x), batch_size=7).std == pytest.approx(0.5, abs=2.0**-33)


def test_the_deviation_is_about_the_global_mean_not_each_coordinates():
    assert measure(InMemory(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))).std == 1


def test_a_large_dataset_is_judged_by_the_same_evenly_spread_samples_every_time():
    class Recording(InMemory):
        seen: list[int]

        def fetch(self, indices):
            self.seen = [*getattr(self, "seen", []), *indices]
            return super().fetch(indices)

    dataset = Recording(data(1000))
    found = measure(dataset, max_samples=30, batch_size=8)
    assert found.count == 30
    assert dataset.seen == [i * 1000 // 30 for i in range(30)]
    assert found == measure(dataset, max_samples=30, batch_size=8)
    assert found != measure(dataset)


def test_values_that_are_not_finite_are_reported():
    class Broken(Dataset):
        event_shape, num_classes, class_names, kind = (1,), 0, None, "vectors"

        def __len__(self):
            return 9

        def fetch(self, indices):
            return torch.tensor([[float("nan") if i == 6 else 0.0] for i in indices]), None

    with pytest.raises(ValueError, match="NaN or infinity among samples 4 … 7"):
        measure(Broken(), batch_size=4)


@pytest.mark.parametrize("argument", ["max_samples", "batch_size"])
def test_counts_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be >= 1, got 0"):
        measure(InMemory(data(3)), **{argument: 0})
