import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openedm.inference.simulation import simulate
from openedm.inference.simulations import Failure, Simulations, Store
from simulators import PRIOR, own_seed, row_seeds, same

pytest.importorskip("pyarrow")


@settings(max_examples=20)
@given(n=st.integers(1, 1100), more=st.integers(0, 1100), batch_size=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_a_simulation_depends_on_its_seed_and_index_alone(n, more, batch_size, seed):
    few = simulate(lambda theta, seed: [*theta, seed % 1009], PRIOR, n, seed=seed, batch_size=batch_size)
    many = simulate(
        lambda theta, seeds: np.column_stack([theta, seeds % 1009]), PRIOR, n + more, seed=seed, batched=True
    )
    assert torch.equal(few.theta, many.theta[:n])
    assert torch.equal(few.x, many.x[:n])
    assert torch.equal(few.index, torch.arange(n))
    assert few.seeds.unique().numel() == n


def test_several_kinds_of_data_are_one_row_each_and_come_apart_again(tmp_path):
    def kinds(theta, seed):
        return {"series": np.outer([1, 2], np.arange(3.0)) * float(theta[0]), "number": seed % 7}

    def batched(theta, seeds):
        return {
            "series": np.outer([1, 2], np.arange(3.0)) * theta[:, 0, None, None].numpy(),
            "number": torch.from_numpy(seeds % 7),
        }

    one, many = simulate(kinds, PRIOR, 40), simulate(batched, PRIOR, 40, batched=True, batch_size=16)
    assert same(one, many)
    assert one.kinds == many.kinds == (("series", (2, 3)), ("number", (1,)))
    assert one.x.shape == (40, 7)
    assert torch.equal(one.data["series"][:, 1, 2], 4 * one.theta[:, 0])
    assert torch.equal(one.data["number"][:, 0], (one.seeds % 7).float())
    assert one.first(5).kinds == one.kinds
    assert torch.equal(Simulations.of(one.theta, one.data).x, one.x)
    stored = simulate(kinds, PRIOR, 40, store=tmp_path / "store")
    assert stored.kinds == one.kinds
    assert torch.equal(simulate(kinds, PRIOR, 60, store=tmp_path / "store").data["series"][:40], one.data["series"])


def test_kinds_of_data_that_change_or_are_none_are_failures():
    def changing(theta, seed):
        return {"a": theta} if seed % 2 else {"b": theta}

    found = simulate(changing, PRIOR, 20)
    (first,) = {name for name, _ in found.kinds}
    other = "b" if first == "a" else "a"
    assert found.failures[0].error == (
        f"ValueError: simulator must return shape {{{first}: (2,)}} as before, got {{{other}: (2,)}}"
    )
    for returned, message in [
        ({}, "names must be different"),
        ({"a": "text"}, r"simulator must return x\['a'\] as real numbers, got str"),
        ({"a": np.zeros((2, 2, 2, 2))}, r"x\['a'\] must hold vectors"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            simulate(lambda theta, returned=returned: returned, PRIOR, 2)


def test_one_by_one_and_batched_by_row_agree():
    assert same(simulate(own_seed, PRIOR, 70), simulate(row_seeds, PRIOR, 70, batched=True, batch_size=32))


def test_other_seeds_give_other_parameters_and_noise():
    one, other = simulate(own_seed, PRIOR, 50, seed=1), simulate(own_seed, PRIOR, 50, seed=2)
    assert not (one.theta == other.theta).any()
    assert not set(one.seeds.tolist()) & set(other.seeds.tolist())


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.randn(3), lambda: np.random.normal(size=3), lambda: [random.random()]],  # noqa: NPY002
)
@pytest.mark.usefixtures("without_type_checker")  # beartype draws from `random`
def test_global_generators_are_seeded_for_each_simulation_and_put_back(draw):
    def simulator(theta):
        return draw()

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = state()
    one, other = simulate(simulator, PRIOR, 20, batch_size=20), simulate(simulator, PRIOR, 25, batch_size=3)
    assert state() == before
    assert torch.equal(one.x, other.x[:20])
    assert one.x[:, 0].unique().numel() == 20


def test_a_batch_without_row_seeds_is_seeded_by_its_first_row():
    calls = []

    def simulator(theta, seed):
        calls.append((len(theta), seed))
        return theta

    found = simulate(simulator, PRIOR, 25, batched=True, batch_size=10)
    assert calls == [(10, found.seeds[0]), (10, found.seeds[10]), (5, found.seeds[20])]


@pytest.mark.parametrize(
    ("simulator", "shape"),
    [
        (lambda theta: float(theta[0]), (1,)),
        (lambda theta: np.float64(2), (1,)),
        (lambda theta: [1, 2, 3], (3,)),
        (lambda theta: np.ones((2, 3), dtype=np.float16), (2, 3)),
        (lambda theta: torch.ones(2, 3, 1, dtype=torch.bfloat16, requires_grad=True), (2, 3, 1)),
        (lambda theta: torch.ones(4, dtype=torch.int64), (4,)),
        (lambda theta: np.array([True, False]), (2,)),
        (lambda theta: np.array([1e30, np.nan]), (2,)),
    ],
)
def test_numbers_of_any_kind_come_back_as_float32_where_nothing_is_lost(simulator, shape):
    found = simulate(simulator, PRIOR, 3)
    assert found.x.shape == (3, *shape)
    assert found.x.dtype == found.theta.dtype == torch.float32


def test_a_number_a_row_counts_as_one_column():
    assert simulate(lambda theta: theta[:, 0], PRIOR, 3, batched=True).x.shape == (3, 1)


def test_parameters_come_as_the_arrays_that_are_asked_for():
    kinds = []

    def simulator(theta):
        kinds.append((type(theta), theta.dtype, tuple(theta.shape)))
        theta *= 0  # its own copy
        return theta

    found = simulate(simulator, PRIOR, 1)
    simulate(simulator, PRIOR, 1, arrays="numpy")
    simulate(simulator, PRIOR, 4, arrays="numpy", batched=True)
    assert kinds == [
        (torch.Tensor, torch.float32, (2,)),
        (np.ndarray, np.float64, (2,)),
        (np.ndarray, np.float64, (4, 2)),
    ]
    assert found.theta.abs().sum() > 0


@pytest.mark.parametrize("batched", [False, True])
def test_failures_are_reported_with_their_parameters_and_seed_and_the_rest_goes_on(batched):
    clean = simulate(row_seeds if batched else own_seed, PRIOR, 50, batched=batched)
    bad = {7: ZeroDivisionError("no data"), 13: SystemExit(2), 49: None, 20: "text"}
    value_of = dict(zip([tuple(t) for t in clean.theta.tolist()], range(50), strict=True))

    def check(rows):
        for row in rows:
            match bad.get(value_of[tuple(row.tolist())]):
                case BaseException() as error:
                    raise error
                case "text":
                    return "text"
        return None

    def batch(theta, seeds):
        x = check(theta) or row_seeds(theta, seeds)
        return x[:-1] if len(theta) > 1 and value_of[tuple(theta[-1].tolist())] == 49 else x

    def single(theta, seed):
        x = check([theta]) or own_seed(theta, seed)
        return x[:1] if value_of[tuple(theta.tolist())] == 49 else x

    found = simulate(batch if batched else single, PRIOR, 50, batched=batched, batch_size=8)
    failed = [7, 13, 20] if batched else [7, 13, 20, 49]  # the last batch's last row is well by itself
    assert [f.index for f in found.failures] == failed
    assert [f.error.split(":")[0] for f in found.failures][:3] == ["ZeroDivisionError", "SystemExit", "TypeError"]
    assert found.failures[2].error == "TypeError: simulator must return real numbers, got str of dtype <U4"
    if not batched:
        assert found.failures[3].error == "ValueError: simulator must return shape (2,) as before, got (1,)"
    for failure in found.failures:
        assert failure.theta == tuple(clean.theta[failure.index].tolist())
        assert failure.seed == clean.seeds[failure.index]
    rest = [i for i in range(50) if i not in failed]
    assert found.index.tolist() == rest
    assert torch.equal(found.x, clean.x[rest])


def test_a_batch_of_another_shape_is_reported_row_by_row():
    def simulator(theta, seeds):
        return theta if len(theta) == 4 else theta[:, :1]

    found = simulate(simulator, PRIOR, 6, batched=True, batch_size=4)
    assert [f.index for f in found.failures] == [4, 5]


def test_failures_before_the_first_result_do_not_matter():
    first = simulate(own_seed, PRIOR, 20).theta[:12].tolist()

    def simulator(theta, seed):
        if theta.tolist() in first:
            raise OSError("not yet")
        return own_seed(theta, seed)

    found = simulate(simulator, PRIOR, 20)
    assert found.index.tolist() == list(range(12, 20))
    assert len(found.failures) == 12


def test_no_result_at_all_is_an_error_that_tells_the_first_failure(tmp_path):
    def simulator(theta):
        raise KeyError("rate")

    with pytest.raises(RuntimeError, match=r"none of 9 simulations gave a result; simulation 0 .*KeyError: 'rate'"):
        simulate(simulator, PRIOR, 9, store=str(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="none of 9 simulations gave a result; simulation 0"):
        simulate(simulator, PRIOR, 9, store=str(tmp_path / "a"))


def test_the_first_failure_can_be_raised(tmp_path):
    def simulator(theta, seed):
        if len(done) == 5:
            raise ValueError("negative rate")
        done.append(seed)
        return theta

    done: list[int] = []
    store = Store(tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"^simulation 5 \(theta = \(.*, .*\), seed = \d+\): ValueError: negative"):
        simulate(simulator, PRIOR, 9, batch_size=1, on_error="raise", store=store)
    assert store.done().tolist() == [0, 1, 2, 3, 4]
    assert [f.index for f in store.failures()] == [5]


def test_nan_and_infinities_are_results():
    def simulator(theta):
        return [float("nan"), float("inf"), float(theta[0])]

    found = simulate(simulator, PRIOR, 5)
    assert found.failures == ()
    assert found.x[:, 0].isnan().all()
    assert found.x[:, 1].isinf().all()


def test_progress_counts_results_and_failures():
    def simulator(theta, seed):
        if seed == second:
            raise ValueError
        return theta

    second = int(simulate(own_seed, PRIOR, 2).seeds[1])
    states: list[tuple[float, float | None, int]] = []

    def progress(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
        states.append((done, total, counts["failed"]))

    simulate(simulator, PRIOR, 4, batch_size=1, progress=progress)
    assert states == [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 1), (4, 4, 1)]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "n must be >= 1, got 0", {"n": 0}),
        (TypeError, "n must be an integer, got 2.0", {"n": 2.0}),
        (ValueError, "seed must be >= 0, got -1", {"seed": -1}),
        (ValueError, "batch_size must be >= 1, got 0", {"batch_size": 0}),
        (ValueError, "workers must be >= 1, or -1 for one a core, got 0", {"workers": 0}),
        (TypeError, "workers must be an integer, got True", {"workers": True}),
        (ValueError, "arrays must be one of 'torch', 'numpy', got 'jax'", {"arrays": "jax"}),
        (ValueError, "on_error must be one of 'report', 'raise', got 'ignore'", {"on_error": "ignore"}),
        (ValueError, "retry_failures=True needs a store", {"retry_failures": True}),
        (TypeError, "prior must be given", {"prior": None}),
        (TypeError, "prior must be a Prior", {"prior": 3}),
        (TypeError, "simulator must be callable, got int", {"simulator": 3}),
        (TypeError, r"called as simulator\(theta\), with an argument seed .* 'rng'", {"simulator": lambda t, rng: t}),
        (TypeError, "seed or seeds if it has one", {"simulator": lambda: 0, "batched": True}),
        (TypeError, "`seeds`, one a row, which is for batched=True", {"simulator": row_seeds}),
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_wrong_arguments_are_refused_by_name_before_a_simulation(error, message, arguments):
    given = {"simulator": own_seed, "prior": PRIOR, "n": 3, **arguments}
    with pytest.raises(error, match=message):
        simulate(given.pop("simulator"), given.pop("prior"), given.pop("n"), **given)


def test_priors_are_taken_in_every_form():
    box = simulate(own_seed, ((-1.0, 0.0), (1.0, 5.0)), 4)
    assert same(box, simulate(own_seed, PRIOR, 4))
    gamma = torch.distributions.Gamma(torch.ones(2), torch.ones(2))
    assert same(simulate(own_seed, gamma, 4), simulate(own_seed, gamma, 4))


def test_simulations_made_elsewhere_are_numbered_and_parts_are_joined_in_order():
    theta, x = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)[:, None]
    found = Simulations.of(theta, x, PRIOR)
    assert found.index.tolist() == [0, 1, 2]
    assert found.seeds.tolist() == [-1] * 3
    failure = Failure(1, (0.0, 0.0), 5, "OSError: none")
    late, failed, early = (
        Simulations(theta[:1], x[:1], torch.tensor([7]), torch.tensor([70])),
        Simulations(
            theta[:0], torch.empty(0, 0), torch.tensor([], dtype=torch.int64), torch.tensor([]).long(), (failure,)
        ),
        Simulations(theta[1:], x[1:], torch.tensor([2, 4]), torch.tensor([20, 40])),
    )
    joined = Simulations.joined([failed, late, early])
    assert joined.index.tolist() == [2, 4, 7]
    assert joined.seeds.tolist() == [20, 40, 70]
    assert joined.x[:, 0].tolist() == [1.0, 2.0, 0.0]
    assert joined.failures == (failure,)
