"""diffusion_core: the small package that the book *Learning Diffusion Models, Step by Step*
explains and tests."""

__version__ = "0.1.0"
