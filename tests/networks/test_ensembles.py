"""Ensembles of small networks: members learn from rows of their own, and are averaged where they are used."""

import pytest
import torch

from openedm.networks import ConditionalEnsemble


def built(**sizes: float) -> torch.nn.Module:
    """A network whose outputs are not zero."""
    network = ConditionalEnsemble(**{"width": 8, "num_blocks": 1, **sizes}).build((2,), condition_shape=(3,), seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return network


def inputs(rows: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(rows, *size, generator=generator) for size in ((2,), (), (3,)))


def test_the_result_is_the_members_mean() -> None:
    network, (x, c_noise, y) = built(members=3).eval(), inputs()
    alone = built(members=1).eval()
    members = []
    for member in range(3):
        state = {name: w[member : member + 1] for name, w in network.state_dict().items() if name != "noise.omega"}
        alone.load_state_dict(state, strict=False)
        members.append(alone(x, c_noise, y))
    torch.testing.assert_close(network(x, c_noise, y), torch.stack(members).mean(0))


def test_in_training_each_row_belongs_to_one_member() -> None:
    network, (x, c_noise, y) = built(members=3, dropout=0.0).train(), inputs()
    for row in (0, 3, 6):  # of members 0, 1 and 2: three rows each
        network.zero_grad()
        network(x, c_noise, y)[row].sum().backward()
        touched = network.layer_in.weight.grad.flatten(1).abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [row // 3]


def test_one_condition_and_level_serve_all_rows() -> None:
    network, (x, c_noise, y) = built().eval(), inputs()
    torch.testing.assert_close(
        network(x, c_noise[:1], y[:1]), network(x, c_noise[:1].expand(7), y[:1].expand(7, -1)), atol=1e-6, rtol=1e-5
    )


def test_dropout_and_noise_are_for_training_alone() -> None:
    network, (x, c_noise, y) = built(dropout=0.5, condition_noise=1.0), inputs()
    torch.manual_seed(0)
    assert not torch.equal(network.train()(x, c_noise, y), network(x, c_noise, y))
    assert torch.equal(network.eval()(x, c_noise, y), network(x, c_noise, y))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"members": 0}, "members must be >= 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"condition_noise": -1.0}, "condition_noise"),
    ],
)
def test_sizes_are_checked(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalEnsemble(**sizes)


def test_what_it_cannot_be_conditioned_on_is_refused() -> None:
    with pytest.raises(ValueError, match="condition_shape must be given"):
        ConditionalEnsemble().build((2,))
    with pytest.raises(ValueError, match="num_classes must be 0"):
        ConditionalEnsemble().build((2,), condition_shape=(3,), num_classes=2)
