"""The two configurations of the comparison in docs/edm2.md can be read, and differ in what they compare."""

from golden import ROOT
from openedm.cli.parsing import parse
from openedm.cli.train import train
from openedm.networks import DDPMpp, EDM2UNet


def test_the_configurations_share_data_and_averages_and_differ_in_network_objective_and_rate():
    folder = ROOT / "examples" / "edm2"
    found = {}
    for name in ("ddpmpp", "edm2"):
        files = [f"--config={folder / 'base.yaml'}", f"--config={folder / f'{name}.yaml'}"]
        found[name] = parse("openedm train", train, ["run", *files])
    one, other = found["ddpmpp"], found["edm2"]
    assert (type(one["network"]), type(other["network"])) == (DDPMpp, EDM2UNet)
    assert one["data"] == other["data"]
    assert one["options"].power_average == other["options"].power_average
    assert (one["options"].schedule, other["options"].schedule) == ("constant", "inverse_sqrt")
    assert one["objective"].learned_uncertainty < other["objective"].learned_uncertainty
