"""Files that survive a crash, and a run's state in one of them: written atomically, read back whole,
refused with a clear error where they are damaged or foreign."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from diffusion_core import files
from diffusion_core.files import read_safetensors, write_safetensors
from diffusion_core.training import (
    CHECKPOINT,
    RunState,
    load_checkpoint,
    save_checkpoint,
    steps_done,
)
from tests.conftest import normal

ROOT = Path(__file__).resolve().parents[2]


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "run" / "a.safetensors"
    tensors = {"w": normal(3, 2), "n": torch.tensor(7)}
    write_safetensors(path, tensors, {"step": "12"})
    found, metadata = read_safetensors(path)
    assert set(found) == {"w", "n"}
    assert metadata["step"] == "12"
    assert_close(found["w"], tensors["w"], rtol=0, atol=0)
    assert found["n"].item() == 7


def test_a_file_without_metadata(tmp_path):
    save_file({"w": normal(2)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")[1] == {}


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "nothing.safetensors"
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        read_safetensors(path)
    write_safetensors(path, {"w": normal(100)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_safetensors(path)


def test_what_was_read_is_no_longer_the_file(tmp_path):
    """A mapped file could not be replaced on Windows, and would change under the reader's feet."""
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    tensors, _ = read_safetensors(path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text()
    assert tensors["a"].tolist() == [0, 0, 0]


def test_a_failed_write_says_how_much_room_is_needed(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    free = SimpleNamespace(free=5 * 2**20)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: free)
    tensors = {"a": torch.zeros(2**18), "b": torch.zeros(2**18, dtype=torch.float64)}
    with pytest.raises(OSError, match=r"it needs 3.0 MiB, 5.0 MiB are free"):
        write_safetensors(tmp_path / "a.safetensors", tensors, {})


LIMITED = """
import resource, signal, sys, torch
sys.path.insert(0, {root!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from diffusion_core.files import write_safetensors
write_safetensors({path!r}, {{"a": torch.zeros(1000)}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    write_safetensors({path!r}, {{"a": torch.ones(1000)}}, {{}})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits on this system")
def test_a_file_that_the_system_refuses_to_grow(tmp_path):
    """The real thing, without a full disk: the system stops the write at 2,000 bytes."""
    path = tmp_path / "a.safetensors"
    code = LIMITED.format(root=str(ROOT), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    tensors, _ = read_safetensors(path)
    assert (tensors["a"] == 0).all()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failing_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.zeros(3)}, {"n": "1"})

    def fail(*_):
        raise OSError("rename failed")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="rename failed"):
        write_safetensors(path, {"a": torch.ones(3)}, {"n": "2"})
    tensors, meta = read_safetensors(path)
    assert (tensors["a"] == 0).all()
    assert meta == {"n": "1"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda f: done.append("fsync") or fsync(f))
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: done.append((a.name, b.name)) or replace(a, b)
    )
    write_safetensors(tmp_path / "new" / "and deeper" / "a.safetensors", {"a": torch.zeros(3)}, {})
    assert done == ["fsync", ("a.safetensors.tmp", "a.safetensors")]


# --- the state of a run ---


def state(seed=0):
    torch.manual_seed(seed)
    net, average = nn.Linear(3, 2), nn.Linear(3, 2)
    return RunState(net, average, torch.optim.Adam(net.parameters(), lr=0.1))


def tensors_of(state):
    """Everything of a run that is a tensor."""
    moments = state.optimizer.state_dict()["state"]
    return {
        **{f"net.{name}": value for name, value in state.net.state_dict().items()},
        **{f"average.{name}": value for name, value in state.average.state_dict().items()},
        **{f"{i}.{name}": value for i in moments for name, value in moments[i].items()},
    }


def trained(seed=0):
    """A state after three steps of Adam, with a log."""
    ours = state(seed)
    for _ in range(3):
        ours.net(torch.ones(2, 3)).square().sum().backward()
        ours.optimizer.step()
    ours.step, ours.history = 17, [{"step": 17, "loss": 0.5}]
    return ours


def test_a_checkpoint_holds_everything(tmp_path):
    ours, other = trained(), state(seed=1)
    save_checkpoint(tmp_path / CHECKPOINT, ours, {"lr": 0.1, "betas": (0.9, 0.99)})
    load_checkpoint(tmp_path / CHECKPOINT, other, {"lr": 0.1, "betas": (0.9, 0.99)})
    assert (other.step, other.history) == (17, [{"step": 17, "loss": 0.5}])
    assert steps_done(tmp_path / CHECKPOINT) == 17
    expected, found = tensors_of(ours), tensors_of(other)
    assert expected.keys() == found.keys()
    assert len(expected) == 2 + 2 + 2 * 3
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_a_state_begins_at_step_0_with_a_log_of_its_own():
    a, b = state(), state()
    a.history.append({"step": 1})
    assert (a.step, b.step, b.history) == (0, 0, [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.2}, r"another configuration \(lr: 0\.1 there, 0\.2 here\)"),
        ({}, r"lr: 0\.1 there, 'not recorded' here"),
        ({"lr": 0.1, "new": 7}, r"\(new: 'not recorded' there, 7 here\)"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, settings, said):
    """The second is what an older version of the package says to a newer one's checkpoint."""
    save_checkpoint(tmp_path / CHECKPOINT, trained(), {"lr": 0.1})
    other = state(seed=1)
    before = {name: value.clone() for name, value in tensors_of(other).items()}
    with pytest.raises(ValueError, match=said):
        load_checkpoint(tmp_path / CHECKPOINT, other, settings)
    assert all(torch.equal(before[name], value) for name, value in tensors_of(other).items())


@pytest.mark.parametrize("part", ["net", "average"])
def test_a_checkpoint_of_another_net_is_refused(tmp_path, part):
    save_checkpoint(tmp_path / CHECKPOINT, trained(), {})
    other = state()
    setattr(other, part, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"(?s)belongs to another net: .*size mismatch"):
        load_checkpoint(tmp_path / CHECKPOINT, other, {})


@pytest.mark.parametrize("missing", ["step", "config", "history"])
def test_a_foreign_safetensors_file_is_no_checkpoint(tmp_path, missing):
    meta = {"step": "1", "config": "{}", "history": "[]"}
    del meta[missing]
    write_safetensors(tmp_path / CHECKPOINT, {"a": torch.zeros(3)}, meta)
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        load_checkpoint(tmp_path / CHECKPOINT, state(), {})
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        steps_done(tmp_path / CHECKPOINT)
