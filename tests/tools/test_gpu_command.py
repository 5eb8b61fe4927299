"""`python -m tools.gpu`: the parts, their order and shares of the time, a plan that fits, and that one failure keeps the rest."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from diffusion_core._validate import UsageError
from diffusion_core.data import load_images
from diffusion_core.pretrained import load_pretrained
from tools import gpu


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with parts that only note what they are told."""
    told = []

    def part(name, share):
        def run(job, record):
            told.append((name, job))
            record["note"] = f"{name} was here"
            if name in command.failing:
                raise UsageError("no")

        return gpu.Part(name, f"about {name}", share, run)

    def command(*arguments):
        told.clear()
        gpu.main(["--device", "cpu", "--out", str(tmp_path / "out"), *arguments])
        return told

    command.failing = []
    monkeypatch.setattr(gpu, "PARTS", (part("one", 0.75), part("two", 0.25)))
    monkeypatch.setattr(gpu, "load_images", lambda *arguments: None)
    return command


def written(tmp_path):
    return json.loads((tmp_path / "out" / "gpu.json").read_text())


def test_all_parts_in_order_share_the_minutes(command, tmp_path):
    (one, first), (two, second) = command("--minutes", "8", "--data", "d")
    assert (one, two) == ("one", "two")
    assert first.seconds == pytest.approx(0.75 * 480, abs=1)
    assert second.seconds == pytest.approx(480, abs=1), "the last one has what is left"
    assert first.data.endswith("/d") and first.data.startswith("/")
    assert first.out == tmp_path / "out"
    assert first.runs.parts[-2:] == ("runs", "gpu"), "checkpoints are no results"
    records = written(tmp_path)
    assert [*records] == ["one", "two"]
    assert records["one"].keys() == {
        "command",
        "date",
        "hardware",
        "torch",
        "note",
        "finished",
        "seconds",
    }


def test_one_part_has_all_the_minutes(command, tmp_path):
    ((name, job),) = command("two", "--minutes", "8")
    assert (name, job.seconds) == ("two", pytest.approx(480, abs=1))
    assert [*written(tmp_path)] == ["two"]


def test_what_is_finished_is_kept_and_a_failure_says_so(command, tmp_path):
    command.failing.append("two")
    with pytest.raises(SystemExit, match=r"two failed \(no\); what was finished is kept in"):
        command()
    records = written(tmp_path)
    assert records["one"]["finished"]
    assert "finished" not in records["two"]
    assert records["two"]["note"] == "two was here"
    command.failing.clear()
    assert [name for name, _ in command()] == ["two"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["three"], "no part named .'three'.; choose from .'one', 'two'"),
        (["--minutes", "0"], "must be above 0"),
        (["--device", "banana"], "device = 'banana' is not available"),
    ],
)
def test_what_cannot_be_is_said_first(command, arguments, said):
    with pytest.raises(SystemExit, match=said):
        command(*arguments)


def test_without_the_data_it_says_what_to_do(command, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "load_images", load_images)
    with pytest.raises(
        SystemExit,
        match=r"mnist was not found in .*take the four files of MNIST/raw along.*--data DIR",
    ):
        command("--data", str(tmp_path))


@pytest.mark.parametrize("seconds", [60, 480, 1800])
@pytest.mark.parametrize(
    ("step", "chain"), [(0.008, 5e-6), (0.02, 2e-5), (0.7, 1.2e-3)]
)  # two GPUs, a CPU
def test_a_plan_fits(seconds, step, chain):
    made = gpu.plan(seconds, step, chain)
    sampling = made["seeds"] * sum(
        made["samples"] * steps * chain + gpu.METRICS + gpu.BOUND * chain
        for steps in made["chains"]
    )
    assert made["steps"] * step + sampling <= gpu.SPARE * seconds + 2 * step
    assert made["steps"] >= 2


def test_a_gpu_evaluates_in_full_and_a_slow_one_less():
    full = gpu.plan(480, 0.008, 5e-6)
    assert (full["chains"], full["samples"], full["seeds"]) == ([1000, 100], 10_000, 3)
    assert full["steps"] > 20_000
    assert gpu.plan(480, 0.008, 2e-5)["samples"] == 2_000
    assert gpu.plan(60, 0.7, 1.2e-3) | {"steps": 0} == {
        "steps": 0,
        "samples": 100,
        "seeds": 1,
        "chains": [100],
    }
    assert gpu.plan(1, 10, 10) == {"steps": 2, "samples": 20, "seeds": 1, "chains": [20]}, (
        "the least there is"
    )


def test_a_part_measures_plans_trains_and_evaluates(monkeypatch, tmp_path):
    """On the digits, and without their evaluation, for which no judge ships."""
    evaluated, stored, record = [], [], {}
    monkeypatch.setattr(
        gpu, "evaluate", lambda name, **how: evaluated.append(SimpleNamespace(name=name, **how))
    )
    monkeypatch.setattr(
        gpu,
        "plan",
        lambda seconds, **measured: {"steps": 3, "samples": 20, "seeds": 1, "chains": [7, 5]},
    )
    job = gpu.Job(
        "cpu", None, tmp_path / "out", tmp_path / "runs", 20.0, lambda: stored.append(dict(record))
    )
    gpu.mnist(job, record, recipe="digits", changes={"batch_size": 4, "p2_gamma": 1.0})
    assert record["measured"].keys() == {"training_step", "chain_step_of_an_image"}
    assert all(0 < value < 60 for value in record["measured"].values())
    assert "plan" in stored[0], "a stopped part goes on with the same plan"
    card = load_pretrained("digits", tmp_path / "out" / "weights").card
    assert (card["steps"], card["config"]["p2_gamma"], card["config"]["batch_size"]) == (3, 1.0, 4)
    assert [(e.steps, e.samples, e.seeds) for e in evaluated] == [(7, 20, 1), (5, 20, 1)]
    assert [e.out.name for e in evaluated] == ["digits_evaluation_7.json", "digits_evaluation.json"]
    monkeypatch.setattr(gpu, "measure", lambda *arguments: pytest.fail("measured again"))
    gpu.mnist(job, record, recipe="digits", changes={"batch_size": 4, "p2_gamma": 1.0})


def test_the_benchmarks_fit_their_rounds(monkeypatch, tmp_path):
    """Four tables of rounds of 3 s, two rounds of each to warm up."""
    clock, commands = [0.0], []

    def run(command, **named):
        commands.append(command)
        clock[0] += 12.0

    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    for seconds, rounds in ((10, 3), (60, 8), (1000, 15)):
        record = {}
        gpu.benchmarks(gpu.Job("cpu", None, tmp_path, tmp_path, seconds, print), record)
        assert record["rounds"] == rounds
        assert commands[-1][-1] == str(tmp_path / "benchmarks.json")


def test_waits_for_the_gpu_are_counted_by_the_step(monkeypatch, tmp_path):
    """Here a stand-in for the GPU's own count: two at the start of a run, one in each step."""
    modes, steps = [], []

    def train(net, data, schedule, config, device):
        steps.append(config.steps)
        for _ in range(2 + config.steps):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(gpu, "train_net", train)
    job = gpu.Job("cpu", None, tmp_path, tmp_path, 20.0, print)
    assert gpu.waits_of_a_step(job, "digits", {}) == 1.0
    assert modes == ["warn", "default"] * 3
    assert min(steps) == 2
