"""`python -m tools.gpu`: the parts, their order, and that one failure keeps the rest."""

import subprocess
from pathlib import Path

import pytest

from diffusion_core.cli import build_parser as package_parser
from diffusion_core.training import CHECKPOINT
from tools import gpu


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The commands that would run; the one named in `fails` fails."""
    made = []

    def run(command, **named):
        made.append(command[2:])
        return subprocess.CompletedProcess(command, 1 if calls_fail and calls_fail[0] in command else 0)

    calls_fail = []
    monkeypatch.setattr(gpu.subprocess, "run", run)

    def call(*arguments, fails=None):
        made.clear()
        calls_fail[:] = [fails] if fails else []
        monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--out", str(tmp_path), *arguments])
        gpu.main()
        return list(made)

    call.made = made
    return call


def test_everything_goes_into_one_folder_in_order(calls, tmp_path):
    made = calls("--data", "d", "--steps", "7", "--chains", "20", "5")
    assert [c[:2] for c in made] == [["diffusion_core", "train"], ["diffusion_core", "evaluate"], ["diffusion_core", "evaluate"], ["benchmarks", "overhead"]]
    for command in made[:3]:
        parsed = package_parser().parse_args(command[1:])
        assert parsed.data == str(Path("d").resolve()), "the parts run in another folder"
        assert parsed.device == "cpu"
    assert package_parser().parse_args(made[0][1:]).steps == 7
    assert not package_parser().parse_args(made[0][1:]).resume, "there is nothing to resume yet"
    assert [package_parser().parse_args(c[1:]).steps for c in made[1:3]] == [20, 5]
    assert [package_parser().parse_args(c[1:]).out.name for c in made[1:3]] == ["mnist_evaluation_20.json", "mnist_evaluation.json"]
    assert package_parser().parse_args(made[1][1:]).samples == 2000
    outs = [str(package_parser().parse_args(c[1:]).out) for c in made[1:3]]
    assert len(set(outs)) == 2
    assert all(o.startswith(str(tmp_path)) for o in outs)


def test_training_that_was_stopped_goes_on(calls, tmp_path):
    checkpoint = tmp_path / "runs" / "mnist" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    train = package_parser().parse_args(calls()[0][1:])
    assert train.resume
    assert train.runs / "mnist" / CHECKPOINT == checkpoint


def test_training_that_is_done_is_not_repeated(calls, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mnist.json").write_text("{}")
    assert calls()[0][:2] == ["diffusion_core", "evaluate"]


def test_a_failure_stops_and_says_so(calls):
    with pytest.raises(SystemExit, match=r"evaluate, 50 steps failed; what was finished is kept"):
        calls(fails="evaluate")
    assert len(calls.made) == 2
