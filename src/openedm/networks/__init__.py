"""Neural networks F(x; c_noise): plain `torch.nn`, which know nothing of diffusion.

Every module here is called as `network(x, c_noise, condition=None, augment=None)` and returns the raw output F; a
preconditioning makes a denoiser of it. A `Network` is the frozen value that such a module is built from; a `Summary` is
that of an embedding network, which makes a vector of a condition.
"""

from openedm.networks.adm import ADMUNet
from openedm.networks.body import UNetBody, level_resolutions
from openedm.networks.conditional import ConditionalMLP, ConditionalResidualMLP
from openedm.networks.configs import ADM, MLP, DDPMpp, NCSNpp, Network, SongUNet
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.mlp import ResidualMLP
from openedm.networks.summaries import ImageSummary, SeriesSummary, SetSummary, Summary, VectorSummary
from openedm.networks.transformer import ConditionalTransformer, JointTransformer, MaskedTransformer, Transformer
from openedm.networks.unet import UNet

__all__ = [
    "ADM",
    "MLP",
    "ADMUNet",
    "ConditionalMLP",
    "ConditionalMixture",
    "ConditionalResidualMLP",
    "ConditionalTransformer",
    "DDPMpp",
    "ImageSummary",
    "JointTransformer",
    "MaskedTransformer",
    "NCSNpp",
    "Network",
    "ResidualMLP",
    "SeriesSummary",
    "SetSummary",
    "SongUNet",
    "Summary",
    "Transformer",
    "UNet",
    "UNetBody",
    "VectorSummary",
    "level_resolutions",
]
