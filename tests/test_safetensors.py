"""Reading a safetensors file back: tensors and metadata, and a clear error for a damaged file."""

import pytest
import torch
from safetensors.torch import save_file

from diffusion_core.training import read_safetensors, save_safely
from tests.conftest import close, normal


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "run" / "a.safetensors"
    tensors = {"w": normal(3, 2), "n": torch.tensor(7)}
    save_safely(tensors, path, {"step": "12"})
    found, metadata = read_safetensors(path)
    assert set(found) == {"w", "n"}
    assert metadata["step"] == "12"
    close(found["w"], tensors["w"], 0)
    assert found["n"].item() == 7


def test_a_file_without_metadata(tmp_path):
    save_file({"w": normal(2)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")[1] == {}


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_safetensors(path)
    save_safely({"w": normal(100)}, path, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_safetensors(path)
