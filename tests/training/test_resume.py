"""A run that was interrupted or killed goes on, bit for bit; what can be wrong with its folder is said."""

import copy
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffusion_core import files
from diffusion_core.data import Images
from diffusion_core.files import read_safetensors
from diffusion_core.schedules import NoiseSchedule, linear_betas
from diffusion_core.training import CHECKPOINT, RunState, checkpoints, elapsed, steps_done, train
from diffusion_core.training import config as settings_of
from diffusion_core.training import loop as training
from tests.training.small import (
    ROOT,
    SCHEDULE,
    Stop,
    T,
    config,
    images,
    losses,
    run,
    same,
    stop_at,
    tiny,
    weights,
)


@pytest.mark.parametrize("stop", [4, 6, 11])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop, dropout):
    whole = run(tiny(dropout=dropout), folder=tmp_path / "whole")
    with pytest.raises(Stop):
        run(tiny(dropout=dropout), folder=tmp_path / "cut", on_step=stop_at(stop))
    torch.manual_seed(99)  # whatever has happened in between
    other_start = tiny(seed=99, dropout=dropout)
    steps = []
    resumed = run(
        other_start,
        folder=tmp_path / "cut",
        resume=True,
        on_step=lambda done, loss: steps.append(done),
    )
    same(weights(whole.net), weights(resumed.net))
    same(weights(whole.ema), weights(resumed.ema))
    assert losses(whole) == losses(resumed)
    assert steps == list(range(stop // 4 * 4 + 1, 13)), "at most checkpoint_every steps are lost"
    a, _ = read_safetensors(tmp_path / "whole" / CHECKPOINT)
    b, _ = read_safetensors(tmp_path / "cut" / CHECKPOINT)
    same(a, b)


def test_resuming_a_finished_run_returns_it(tmp_path):
    first = run(folder=tmp_path)
    again = run(tiny(seed=4), folder=tmp_path, resume=True)
    same(weights(first.net), weights(again.net))
    same(weights(first.ema), weights(again.ema))
    assert first.history == again.history


def test_resuming_where_nothing_is_says_so_and_makes_no_folder(tmp_path):
    mistyped = tmp_path / "rnus"
    with pytest.raises(
        FileNotFoundError, match=r"rnus.* does not exist: there is nothing to resume"
    ):
        run(folder=mistyped, resume=True)
    assert not mistyped.exists()
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        run(resume=True)


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path):
    run(folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        run(folder=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


KILLED = """
import sys, time, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.training.small import config, run
print("ready", flush=True)
result = run(conf=config(steps={steps}, checkpoint_every=5), folder={folder!r},
             on_step=lambda done, loss: (print(done, flush=True), time.sleep(0.005)))
"""


def start_run(folder, steps):
    code = KILLED.format(root=str(ROOT), steps=steps, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def one_thread():
    """Sums are rounded in another order with another number of threads: both processes use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_a_random_moment_it_loses_only_the_steps_since_the_last_checkpoint(
    tmp_path, one_thread
):
    steps = 200
    delay = int.from_bytes(os.urandom(2)) / 2**16 * 0.3
    with start_run(tmp_path, steps) as process:
        assert process.stdout.readline() == "ready\n"
        seen = [int(process.stdout.readline()) for _ in range(12)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        seen += [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    _, meta = read_safetensors(tmp_path / CHECKPOINT)  # whole, whenever the kill came
    kept = int(meta["step"])
    assert kept % 5 == 0
    assert seen[-1] - 5 <= kept <= seen[-1] + 5, (kept, seen[-1], delay)
    conf = config(steps=steps, checkpoint_every=5)
    resumed = run(tiny(seed=9), conf, folder=tmp_path, resume=True)
    same(weights(resumed.net), weights(run(conf=conf).net))


def test_seconds_add_up_over_the_parts_of_a_run(tmp_path, monkeypatch):
    clock = [100.0]

    def tick():
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(training.time, "perf_counter", tick)
    with pytest.raises(Stop):
        run(folder=tmp_path, on_step=stop_at(8))
    clock[0] += 1000  # the pause does not count
    result = run(folder=tmp_path, resume=True)
    assert [row["seconds"] for row in result.history] == [0.5 * n for n in range(1, 13)]
    assert result.history[-1]["images_per_s"] == 16.0
    assert elapsed(result.history) == 6.0


def test_elapsed_is_that_of_the_last_logged_step():
    rows = [
        {"step": 5, "images_per_s": 40.0, "seconds": 1.0},
        {"step": 10, "images_per_s": 20.0, "seconds": 4.5},
        {"step": 12, "loss_by_t": [1.0]},
    ]
    assert elapsed(rows) == 4.5
    assert elapsed([]) == 0


def test_a_full_disk_is_reported_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Stop):
        run(folder=tmp_path, on_step=stop_at(4))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr("diffusion_core.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*needs [0-9.]+ MiB.*previous file is kept"):
        run(folder=tmp_path, resume=True)
    assert len(calls) == 1
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT], "no half file is left"
    monkeypatch.undo()
    same(weights(run(folder=tmp_path, resume=True).net), weights(run().net))


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "pickle"])
def test_a_damaged_checkpoint_is_refused_and_never_unpickled(tmp_path, damage):
    run(folder=tmp_path)
    path = tmp_path / CHECKPOINT
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a checkpoint, but long enough to be one")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        run(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        steps_done(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        run(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"is not a checkpoint of train\(\)"):
        steps_done(tmp_path / CHECKPOINT)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.01},
        {"seed": 1},
        {"steps": 13},
        {"batch_size": 16},
        {"betas": (0.8, 0.9)},
        {"p2_gamma": 0.5},
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, change):
    run(folder=tmp_path)
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"another configuration .{name}: .*there.*here"):
        run(conf=config(**change), folder=tmp_path, resume=True)


@pytest.mark.parametrize("what", ["pixels", "labels", "schedule"])
def test_a_checkpoint_of_other_data_or_another_schedule_is_refused(tmp_path, what):
    run(folder=tmp_path)
    data, schedule = images(), SCHEDULE
    if what == "schedule":
        schedule = NoiseSchedule.from_betas(linear_betas(T, 1e-3, 0.2))
    elif what == "labels":
        data = Images(data.pixels, data.labels.flip(0))
    else:
        data = Images(data.pixels.flip(0), data.labels)
    name = "schedule" if what == "schedule" else "data"
    with pytest.raises(
        ValueError, match=rf"another configuration .{name}: '\w+' there, '\w+' here"
    ):
        train(tiny(), data, schedule, config(), device="cpu", folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_net_is_refused(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another net"):
        run(tiny(classes=5), folder=tmp_path, resume=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_says_the_precision_it_was_made_with(tmp_path, monkeypatch, there):
    """So that "auto" on a machine with bfloat16 units is not resumed on one without."""
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: there)
    run(conf=config(precision="auto"), folder=tmp_path)
    monkeypatch.setattr(settings_of, "_has_bf16", lambda device: not there)
    with pytest.raises(ValueError, match=r"another configuration .precision: "):
        run(conf=config(precision="auto"), folder=tmp_path, resume=True)


@pytest.mark.parametrize("steps", [6, 13])
def test_another_number_of_steps_is_refused_with_the_reason(tmp_path, steps):
    run(folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"steps: 12 there, \d+ here.*learning rate.*a longer run is a new one"
    ):
        run(conf=config(steps=steps), folder=tmp_path, resume=True)


# --- what is in the way is said before the first step ---


def refused(error, match, folder, **arguments):
    steps = []
    with pytest.raises(error, match=match):
        run(folder=folder, on_step=lambda done, loss: steps.append(done), **arguments)
    assert steps == [], "no step is lost"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "runs").write_text("here")
    refused(OSError, "runs cannot be used .*choose another folder", tmp_path / "runs")
    refused(OSError, "mnist cannot be used .*choose another folder", tmp_path / "runs" / "mnist")


def test_a_folder_in_the_place_of_the_checkpoint(tmp_path):
    (tmp_path / CHECKPOINT).mkdir()
    refused(IsADirectoryError, "is a folder; move it away", tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def read_only(path, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", read_only)
    refused(OSError, r"checkpoint\.safetensors could not be written .*Permission denied", tmp_path)


def test_a_disk_with_too_little_room(tmp_path, monkeypatch):
    run(folder=tmp_path / "whole")
    needed = (tmp_path / "whole" / CHECKPOINT).stat().st_size
    free = [needed]
    monkeypatch.setattr(
        "diffusion_core.files.shutil.disk_usage", lambda path: SimpleNamespace(free=free[0])
    )
    refused(OSError, r"needs \d+\.\d MiB, 0\.0 MiB are free; make room", tmp_path / "a")
    free[0] = needed + 2**20
    run(folder=tmp_path / "b")


def test_a_larger_net_needs_more_room():
    states = [
        RunState(net, copy.deepcopy(net), None) for net in (nn.Linear(1, 1), nn.Linear(1000, 1000))
    ]
    small, large = (checkpoints._bytes_needed(state) for state in states)
    assert large - small == 4 * 4 * (1000 * 1000 + 1000 - 2), "net, average, two moments; float32"


# --- two runs at once ---


OTHER = """
import sys
sys.path.insert(0, {root!r})
from tests.training.small import config, run
run(conf=config(), folder={folder!r}, on_step=lambda done, loss: (print(done, flush=True), sys.stdin.read(1)))
"""


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked on Windows")
def test_a_second_run_in_one_folder_is_refused_while_the_first_is_at_work(tmp_path):
    code = OTHER.format(root=str(ROOT), folder=str(tmp_path))
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as first:
        assert first.stdout.readline() == "1\n"
        refused(BlockingIOError, "another run is at work in .*; wait for its end", tmp_path)
        first.stdin.write("12345678")
        first.stdin.flush()
        while first.stdout.readline() != "6\n":  # after its checkpoint of step 4
            pass
        refused(
            BlockingIOError, "another run is at work in .*; wait for its end", tmp_path, resume=True
        )
        first.kill()
    resumed = run(tiny(seed=3), folder=tmp_path, resume=True)  # the lock went with the process
    assert len(resumed.history) == 12
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    run(folder=tmp_path / "a")
    monkeypatch.setattr(files, "fcntl", None)
    run(folder=tmp_path / "b")
    assert [steps_done(tmp_path / name / CHECKPOINT) for name in "ab"] == [12, 12]


CUT = """
import os, signal, sys
sys.path.insert(0, {root!r})
from diffusion_core import files
from tests.training.small import config, run
writes = []
def cut(handle):
    writes.append(1)
    if len(writes) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
files.os.fsync = cut
run(folder={folder!r})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_while_it_writes_a_checkpoint_it_leaves_one_file_that_the_next_writer_takes(
    tmp_path,
):
    code = CUT.format(root=str(ROOT), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, CHECKPOINT + ".tmp"]
    assert steps_done(tmp_path / CHECKPOINT) == 4
    run(folder=tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]
