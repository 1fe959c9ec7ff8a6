"""Work and weights shared among processes. Runs of several processes are tested in tests/cli/test_processes.py."""

import pytest
import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from openedm.data import Digits
from openedm.networks import NCSNpp
from openedm.optimisation import full_tensor
from openedm.training import Model, share_of
from openedm.training.processes import full_copy, full_state_dict, shard, shard_like


@pytest.fixture
def alone(tmp_path):
    """A group of one process: tensors are shared out, and its slice is all."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_network_computes_the_same_with_its_weights_shared_out_and_as_a_full_copy(alone):
    # Its lists hold lists of blocks, and levels fill lists that they are given.
    model = Model.for_data(Digits("test").load(), NCSNpp(model_channels=8, channel_mult=(1, 2), num_blocks=1))
    x, labels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 4])
    plain, sharded = model.build().eval(), model.build().eval()
    with torch.no_grad():
        for parameter in [*plain.parameters(), *sharded.parameters()]:
            parameter.add_(0.1)  # new networks end in zeros
        wanted = plain(x, torch.tensor(0.5), labels)
        shard([sharded], torch.device("cpu"), 1)
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        # The memory format is another, and with it the order of sums.
        torch.testing.assert_close(sharded(x, torch.tensor(0.5), labels), wanted, rtol=1e-4, atol=1e-5)
        copy = full_copy(sharded, model)
    assert not copy.training
    found, weights = copy.state_dict(), plain.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_what_is_placed_and_gathered_is_what_it_was(alone):
    value = torch.arange(6.0).view(3, 2)
    mine = distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    placed = shard_like(mine, value)
    assert isinstance(placed, DTensor)
    assert torch.equal(full_tensor(placed), value)
    assert torch.equal(full_state_dict({"a": placed})["a"], value)
    assert full_state_dict({"a": placed}, keep=False) == {}


def test_tensors_that_are_not_shared_out_are_left_alone():
    value = torch.arange(3.0)
    assert full_tensor(value) is value
    assert shard_like(torch.zeros(3), value) is value
    assert full_state_dict({"a": value})["a"] is value


def test_one_process_holds_all_whatever_the_sharding(trainer, state_of, differences):
    runs = [trainer(images=32, sharding=sharding) for sharding in ("none", "fsdp")]
    for run in runs:
        run.fit()
    assert differences(*map(state_of, runs)) == []


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 21])
def test_all_processes_together_have_every_item_once_in_the_batches_that_one_process_has(count, processes):
    items = list(range(100, 100 + count))
    batches = [items[start : start + 3] for start in range(0, count, 3)]
    found = []
    for rank in range(processes):
        mine = share_of(items, 3, rank, processes)
        found += [mine[start : start + 3] for start in range(0, len(mine), 3)]
    assert sorted(found) == batches
