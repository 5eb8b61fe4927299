"""The one atomic writer: what its files may be read by, and what is said of those that may not."""

import os
import stat

import pytest
import torch

from diffusion_core import files
from diffusion_core.networks import Classifier
from diffusion_core.pretrained import save_net


@pytest.fixture
def umask():
    """Sets the umask; it is put back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_any_new_file(mask, mode, umask, tmp_path):
    """Weights that only their owner can read are of no use to the others."""
    umask(mask)
    files.write_bytes(tmp_path / "a.bin", b"abc")
    files.write_json(tmp_path / "a.json", {})
    files.write_safetensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    save_net(Classifier(classes=3, width=8), "judge", {}, tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    names = ("a.bin", "a.json", "a.safetensors", "judge.json", "judge.safetensors")
    assert modes == dict.fromkeys(names, mode)


@pytest.mark.parametrize("read", [files.read_safetensors, files.read_metadata])
def test_a_file_that_may_not_be_read_is_not_called_truncated(read, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"x": torch.zeros(2)}, {})
    monkeypatch.setattr(os, "access", lambda asked, mode: asked != path)
    with pytest.raises(
        PermissionError, match=r"a\.safetensors is not readable for this user; change its mode"
    ):
        read(path)


def test_what_an_interrupted_writer_left_is_overwritten(tmp_path):
    (tmp_path / "a.json.tmp").write_text("half of i")
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
