"""Neural networks F(x; c_noise): plain `torch.nn` modules, independent of diffusion.

A `Network` is a frozen value: the kind of network and its sizes. Its `build` makes, for the shapes of some data, a
module that is called as `network(x, c_noise, condition=None, augment=None)` and returns the raw output F; a
preconditioning turns the module into a denoiser. A `Summary` describes an embedding network, which maps a condition to
a vector.
"""

from openedm.networks.designs import ADM, DDPMpp, NCSNpp, SongUNet
from openedm.networks.dit import DiT
from openedm.networks.ensembles import ConditionalEnsemble, ConditionalEnsembleMLP
from openedm.networks.joined import JoinedSummary
from openedm.networks.magnitude import project_weights
from openedm.networks.magnitude_unet import EDM2UNet, MagnitudePreservingUNet
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.mlp import MLP, ConditionalMLP, ConditionalResidualMLP, ResidualMLP
from openedm.networks.network import Network, RawNetwork, Signature
from openedm.networks.own import ModuleNetwork, ModuleSummary
from openedm.networks.summaries import ImageSummary, SeriesSummary, SetSummary, Summary, VectorSummary
from openedm.networks.transformer import ConditionalTransformer, JointTransformer, MaskedTransformer, Transformer
from openedm.networks.unet import UNet

__all__ = [
    "ADM",
    "MLP",
    "ConditionalEnsemble",
    "ConditionalEnsembleMLP",
    "ConditionalMLP",
    "ConditionalMixture",
    "ConditionalResidualMLP",
    "ConditionalTransformer",
    "DDPMpp",
    "DiT",
    "EDM2UNet",
    "ImageSummary",
    "JoinedSummary",
    "JointTransformer",
    "MagnitudePreservingUNet",
    "MaskedTransformer",
    "ModuleNetwork",
    "ModuleSummary",
    "NCSNpp",
    "Network",
    "RawNetwork",
    "ResidualMLP",
    "SeriesSummary",
    "SetSummary",
    "Signature",
    "SongUNet",
    "Summary",
    "Transformer",
    "UNet",
    "VectorSummary",
    "project_weights",
]
