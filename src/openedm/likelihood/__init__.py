"""Likelihood: densities, bits per dimension and latent noise of samples, by the probability flow of any denoiser."""

from openedm.likelihood.bits import BitsPerDim, bits_per_dim
from openedm.likelihood.dataset import Dequantisation, dataset_log_prob
from openedm.likelihood.density import Likelihood, LogProb, log_prob
from openedm.likelihood.divergence import ExactTrace, Hutchinson, Trace

__all__ = [
    "BitsPerDim",
    "Dequantisation",
    "ExactTrace",
    "Hutchinson",
    "Likelihood",
    "LogProb",
    "Trace",
    "bits_per_dim",
    "dataset_log_prob",
    "log_prob",
]
