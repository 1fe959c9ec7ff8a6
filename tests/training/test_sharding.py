"""Weights shared out among processes. What several processes do with them is tested in tests/cli/test_processes.py."""

import pytest
import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from openedm.data import Digits
from openedm.networks import NCSNpp
from openedm.training import Model
from openedm.training.sharding import gathered, placed_like, shard, whole, whole_copy


@pytest.fixture
def alone(tmp_path):
    """A group of one process: tensors are shared out, and its slice is all."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_network_computes_the_same_with_its_weights_shared_out_and_as_a_whole_copy(alone):
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
        copy = whole_copy(sharded, model)
    assert not copy.training
    found, weights = copy.state_dict(), plain.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_what_is_placed_and_gathered_is_what_it_was(alone):
    value = torch.arange(6.0).view(3, 2)
    mine = distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    placed = placed_like(mine, value)
    assert isinstance(placed, DTensor)
    assert torch.equal(whole(placed), value)
    assert torch.equal(gathered({"a": placed})["a"], value)
    assert gathered({"a": placed}, keep=False) == {}


def test_tensors_that_are_not_shared_out_are_left_alone():
    value = torch.arange(3.0)
    assert whole(value) is value
    assert placed_like(torch.zeros(3), value) is value
    assert gathered({"a": value})["a"] is value


def test_one_process_holds_all_whatever_the_sharding(trainer, state_of, differences):
    runs = [trainer(images=32, sharding=sharding) for sharding in ("none", "fsdp")]
    for run in runs:
        run.fit()
    assert differences(*map(state_of, runs)) == []
