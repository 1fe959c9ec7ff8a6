"""openedm: the design space of diffusion models (Karras et al. 2022) as replaceable objects."""

__version__ = "0.1.0"
