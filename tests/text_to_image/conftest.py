"""A pocket pipeline with fresh weights, for what needs no training."""

import pytest
import torch

from diffusion_core.networks import AutoencoderKL
from diffusion_core.text_to_image import build_pipeline


@pytest.fixture(scope="session")
def _fresh(tmp_path_factory):
    torch.manual_seed(0)
    net = AutoencoderKL((16, 16, 16), groups=8)
    return net, build_pipeline(net, 0.5, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def fresh(_fresh):
    """The pipeline; a test that changes it has to put it back."""
    pipeline = _fresh[1]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def autoencoder(_fresh):
    return _fresh[0]
