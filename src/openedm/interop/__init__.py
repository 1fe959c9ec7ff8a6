"""Networks and samples from elsewhere: the files that the EDM authors published."""

from openedm.interop.edm import edm_denoiser, edm_network, load_edm_state_dict, published_names

__all__ = ["edm_denoiser", "edm_network", "load_edm_state_dict", "published_names"]
