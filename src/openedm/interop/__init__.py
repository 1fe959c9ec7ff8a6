"""Networks of other sources: the files that the EDM authors published, and the model hub."""

from openedm.interop.edm import (
    edm_choice,
    edm_denoiser,
    edm_network,
    load_edm_state_dict,
    published_filters,
    published_names,
)
from openedm.interop.edm2 import edm2_choice, edm2_denoiser, edm2_names
from openedm.interop.hub import Pretrained
from openedm.interop.kdiffusion import SamplerFunction, from_kdiffusion, sampler_function
from openedm.interop.pickles import DamagedFileError, UnreadableFileError, UnsafeFileError
from openedm.interop.published import Published, publish, published_model, read_published, write_published
from openedm.interop.sbi_estimators import SbiDenoiser, from_sbi
from openedm.interop.uploading import upload, write_repository

__all__ = [
    "DamagedFileError",
    "Pretrained",
    "Published",
    "SamplerFunction",
    "SbiDenoiser",
    "UnreadableFileError",
    "UnsafeFileError",
    "edm2_choice",
    "edm2_denoiser",
    "edm2_names",
    "edm_choice",
    "edm_denoiser",
    "edm_network",
    "from_kdiffusion",
    "from_sbi",
    "load_edm_state_dict",
    "publish",
    "published_filters",
    "published_model",
    "published_names",
    "read_published",
    "sampler_function",
    "upload",
    "write_published",
    "write_repository",
]
