"""Autoencoders in folders."""

import json

import pytest
import torch

from diffusion_core.files import write_safetensors
from diffusion_core.networks import AutoencoderKL
from diffusion_core.text_to_image import load_autoencoder, to_diffusers_vae


def tiny():
    torch.manual_seed(0)
    return AutoencoderKL(channels=(8, 8, 16), groups=4)


@pytest.fixture
def folder(tmp_path):
    """A folder as diffusers writes it, in half precision."""
    pytest.importorskip("diffusers")
    to_diffusers_vae(tiny(), 0.7).half().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_diffusers_is_read(folder):
    net, scale = load_autoencoder(folder)
    assert scale == 0.7
    assert not net.training
    own = tiny().state_dict()
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, own[name].half().float())


def test_a_folder_that_lacks_a_file_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_autoencoder(folder)


@pytest.mark.parametrize("change", [{"norm_num_groups": 8}, {"latent_channels": 3}, {}])
def test_another_kind_of_autoencoder_is_refused(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | change
    if change:
        path.write_text(json.dumps(config | {"layers_per_block": 2}))
    else:
        write_safetensors(folder / "diffusion_pytorch_model.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="describes no autoencoder"):
        load_autoencoder(folder)
