"""Networks and samples from elsewhere: the files that the EDM authors published."""

from openedm.interop.edm import edm_network, load_edm_state_dict

__all__ = ["edm_network", "load_edm_state_dict"]
