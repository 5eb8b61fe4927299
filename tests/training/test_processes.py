"""Devices and processes: two follow the path of one."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.training import is_main, loop, processes
from diffusion_core.training.processes import Place, dropout_seeded, find_place
from tests.training.small import ROOT, config, images, losses, run, same, tiny, weights


def test_training_does_not_disturb_or_depend_on_the_global_generator():
    torch.manual_seed(5)
    a = run(tiny(dropout=0.5))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    net = copy.deepcopy(tiny(dropout=0.5))
    torch.set_rng_state(before)
    b = run(net)
    same(weights(a.net), weights(b.net))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_on_while_training_whatever_mode_the_net_came_in():
    modes = []
    net = tiny(dropout=0.5).eval()
    net.register_forward_pre_hook(lambda net, arguments: modes.append(net.training))
    run(net, config(steps=3, validate_every=1), validation=images(4))
    assert modes == ([True] + [False] * 10) * 3, "a step, then ten buckets of the average"


def test_dropout_differs_between_steps_seeds_and_processes_and_repeats():
    def drawn(k=3, process=0, seed=0):
        with dropout_seeded(k, seed, Place(torch.device("cpu"), process, 8)):
            return torch.rand(4).tolist()

    assert drawn() == drawn()
    batches = torch.rand(4, generator=torch.Generator().manual_seed(3)).tolist()
    assert drawn() != batches, "masks share no stream with draw_batch"
    others = [
        drawn(k=4),
        drawn(process=1),
        drawn(seed=1),
        drawn(k=4 + 8, process=1),
        drawn(k=2, seed=1),
    ]
    assert all(other != drawn() for other in others)


@pytest.mark.parametrize("seed", [0, 3, 2_000, 9_000])  # 2,000 sets the highest of the 32 bits
def test_the_seed_of_dropout_stays_what_it_is(seed):
    """Another formula would make a resumed run draw other masks than the run that was stopped."""
    with dropout_seeded(5, seed, Place(torch.device("cpu"), 1, 2)):
        assert torch.initial_seed() == (seed * 1_000_003 + 5 + 2 * 2_654_435_769) % 4_294_967_296


TWO = """
import json, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.training.small import config, run, tiny
net, sizes = tiny(), []
net.register_forward_pre_hook(lambda net, arguments: sizes.append(len(arguments[0])))
result = run(net, config(steps=30, log_every=1), folder={folder!r})
if torch.distributed.get_rank() == 0:
    torch.save({{"sizes": sizes, "losses": [r["loss"] for r in result.history],
                 "net": result.net.state_dict(), "ema": result.ema.state_dict()}}, {out!r})
torch.distributed.destroy_process_group()
"""


LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2",
    "accelerate launch": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no --main_process_port=0 --main_process_ip=127.0.0.1",
}  # "--multi_gpu" only means: several processes


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_follow_the_path_of_one(tmp_path, launcher):
    """Two CPU processes (gloo), started as GPUs are: the same global batch, the same losses, one
    checkpoint that one process can resume."""
    script, out = tmp_path / "two.py", tmp_path / "out.pt"
    script.write_text(
        TWO.format(root=str(ROOT), folder=str(tmp_path / "run"), out=str(out)), encoding="utf8"
    )
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher].split(), str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(out, weights_only=True)
    assert two["sizes"] == [4] * 30, "each process sees its half of the batch of 8"
    one = run(conf=config(steps=30, log_every=1))
    gap = max(abs(a - b) for a, b in zip(losses(one), two["losses"], strict=True))
    print(f"largest difference of the loss over 30 steps, 2 processes against 1: {gap:.2e}")
    assert gap <= 1e-5
    for name, value in one.ema.state_dict().items():
        assert_close(two["ema"][name], value, rtol=0, atol=1e-4)
    resumed = run(tiny(seed=5), config(steps=30, log_every=1), folder=tmp_path / "run", resume=True)
    assert_close(resumed.net.mix.weight, one.net.mix.weight, rtol=0, atol=1e-4)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="batch_size = 8 does not split evenly over 3 processes"):
        Place(torch.device("cpu"), 0, 3).rows(8)


def test_every_row_belongs_to_one_process():
    rows = [list(range(12))[Place(torch.device("cpu"), i, 4).rows(12)] for i in range(4)]
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device = 'banana' is not available.*choose 'cpu'"):
        run(device="banana")
    with pytest.raises(ValueError, match="device = 'meta' is not available"):
        run(device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_training_on_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device = 'cuda' is not available"):
        run(device="cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs, and the environment of one of several processes."""
    connected = []

    def set_up(**environment):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return connected

    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: connected.append(str(device)))
    monkeypatch.setattr(processes, "check_device", lambda device: torch.device(device))
    monkeypatch.setattr(processes.distributed, "init_process_group", connected.append)
    monkeypatch.setattr(processes.distributed, "get_rank", lambda: int(os.environ["RANK"]))
    monkeypatch.setattr(
        processes.distributed, "get_world_size", lambda: int(os.environ["WORLD_SIZE"])
    )
    return set_up


@pytest.mark.parametrize("device", [None, "cuda", "cuda:1", "cpu"])
def test_one_process_takes_the_device_that_is_asked_for(machine, device):
    for environment in ({}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        connected = machine(**environment)
        assert find_place(device) == Place(torch.device(device or "cuda"), 0, 1)
        assert connected == [], "a single process is connected with nobody"
        assert is_main()


@pytest.mark.parametrize("device", [None, "cuda"])
def test_each_of_several_processes_takes_a_gpu_of_its_own(machine, device):
    connected = machine(WORLD_SIZE="4", RANK="3", LOCAL_RANK="1")
    assert find_place(device) == Place(torch.device("cuda:1"), 3, 4)
    assert connected == ["cuda:1", "nccl"]
    assert not is_main()
    with pytest.raises(
        ValueError, match="each of the 4 processes takes a device of its own; say 'cuda'"
    ):
        find_place("cuda:0")


def test_several_processes_on_the_cpu_are_connected_by_gloo(machine):
    connected = machine(WORLD_SIZE="2", RANK="0")
    assert find_place("cpu") == Place(torch.device("cpu"), 0, 2)
    assert connected == ["gloo"]


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert find_place(None) == Place(torch.device("cpu"))


def test_processes_end_together(monkeypatch):
    """The main process still writes the last checkpoint when the others are done."""
    waited = []
    monkeypatch.setattr(loop, "wait_for_all", waited.append)
    run()
    assert waited == [Place(torch.device("cpu"))]


def test_what_launchers_leave_in_the_environment_changes_no_number(monkeypatch):
    expected = weights(run().net)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    same(weights(run().net), expected)
