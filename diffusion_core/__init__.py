"""diffusion_core: the small package that the book *Learning Diffusion Models, Step by Step*
explains and tests."""

import warnings

__version__ = "0.1.0"

# accelerate and diffusers import tqdm.auto, which asks for ipywidgets wherever they are missing
warnings.filterwarnings("ignore", message="IProgress not found")
