"""The command line as a whole: help, one-line errors, exit statuses."""

import inspect
import io
import sys

import pytest
import torch

from diffusion_core import cli
from diffusion_core.__main__ import main
from diffusion_core.cli import build_parser
from diffusion_core.cli import sample as sample_command
from diffusion_core.training import RECIPES

DDIM = ["--sampler", "ddim"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "imagenet"], "no recipe named 'imagenet'"),
        (["train", "digits", "--steps", "0"], "steps = 0 must be at least 1"),
        (["train", "digits", "--lr", "0"], "lr = 0.0 must be above 0 and finite"),
        (["train", "digits", "--lr", "nan"], "lr = nan must be above 0 and finite"),
        (["train", "digits", "--grad-clip", "-1"], "grad_clip = -1.0 must be above 0"),
        (["train", "digits", "--resume"], "--resume: there is no runs"),
        (["train", "digits", "--resume", "--runs", "rnus"], "--resume: there is no rnus"),
        (["sample", "nothing"], "no weights named 'nothing'"),
        (["sample", "mnist", "--labels", "0-12"], "knows the labels 0-9"),
        (["sample", "mnist", "--labels", "0-99999999999999"], "knows the labels 0-9"),
        (["sample", "mnist", "--labels", "x"], "cannot be read; write 0-9"),
        (
            ["sample", "mnist", "--steps", "1001"],
            "--steps = 1001 is more than the 1000 of the whole chain",
        ),
        (["sample", "mnist", "--steps", "0"], "--steps = 0 must be at least 1"),
        (
            ["evaluate", "mnist", "--steps", "1001"],
            "--steps = 1001 is more than the 1000 of the whole chain",
        ),
        (["evaluate", "nothing"], "no weights named 'nothing'"),
        (["sample", "mnist", "--each", "0"], "--each = 0 must be at least 1"),
        (["sample", "mnist", "--device", "banana"], "device = 'banana' is not available"),
        (["evaluate", "mnist", "--seeds", "0"], "--seeds = 0 must be at least 1"),
        (["evaluate", "mnist", "--samples", "1"], "--samples = 1 must be at least 2"),
        (["sample", "mnist", "--labels", "2-1"], "from the smaller label to the larger"),
        (["sample", "mnist", "--labels", "0-1-9"], "cannot be read"),
        (["sample", "mnist", "--out", "grid.pgn"], "'.pgn' is no kind of image file"),
        (["sample", "mnist", "--out", "grid"], "'' is no kind of image file"),
        (["sample", "mnist", "--out", "grid.psd"], "Pillow cannot write this kind of file (PSD)"),
        (["sample", "mnist", "--out", "grid.hdf"], "Pillow cannot write this kind of file (HDF5)"),
        (["sample", "mnist", "--out", "grid.xbm"], "Pillow cannot write this kind of file (XBM)"),
        (["sample", "mnist", "--out", "."], "is a folder; name a file in it"),
        (["evaluate", "mnist", "--out", "."], "is a folder; name a file in it"),
        (["sample", "mnist", "--seed", "-1"], "seed = -1 must be at least 0"),
        (["sample", "mnist", "--seed", "99999999999999"], "must be less than 2**32"),
        (["evaluate", "mnist", "--device", "banana"], "device = 'banana' is not available"),
        (["train", "digits", "--device", "banana"], "device = 'banana' is not available"),
        (["train", "mnist_classifier", "--steps", "3"], "takes no --steps"),
        (["train", "mnist_classifier", "--grad-clip", "3"], "takes no --grad-clip"),
        (["train", "mnist_classifier", "--lr", "-3"], "lr = -3.0 must be above 0"),
        (["train", "mnist_classifier", "--resume"], "takes no --resume"),
        (["train", "mnist_classifier", "--device", "cuda"], "is trained on the CPU"),
        *(
            ([command, "mnist", *options], message)
            for command in ("sample", "evaluate")
            for options, message in (
                ([*DDIM, "--eta", "-0.5"], "eta = -0.5 must be a finite number of at least 0"),
                ([*DDIM, "--eta", "nan"], "eta = nan must be a finite number of at least 0"),
                ([*DDIM, "--eta", "inf"], "eta = inf must be a finite number of at least 0"),
                ([*DDIM, "--eta", "40"], "eta = 40 is too large"),
                (["--eta", "0"], "eta = 0.0: the sampler 'ddpm' has no eta; choose 'ddim'"),
                (["--guidance", "nan"], "guidance_scale = nan must be a finite number"),
                (["--guidance", "-inf"], "guidance_scale = -inf must be a finite number"),
            )
        ),
        (
            ["sample", "mnist", "--labels", "none", "--guidance", "2"],
            "guidance_scale = 2.0 needs labels",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    """Before any work, and with nothing left behind."""

    def never(*arguments, **named):
        raise AssertionError("the error came after the work had begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.train, "load_images", never)
    monkeypatch.setattr(cli.evaluate, "load_images", never)
    arguments = [a.replace("-inf", " -inf") for a in arguments]  # for argparse "-inf" is an option
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
@pytest.mark.parametrize(
    "command", [["train", "digits"], ["sample", "mnist"], ["evaluate", "mnist"]]
)
@pytest.mark.parametrize("device", ["mps", "cuda:99", "meta", "xla", "hpu", ""])
def test_a_device_that_is_not_there_is_one_short_line(
    command, device, capsys, tmp_path, monkeypatch
):
    """PyTorch says it on a page, and of "meta" only when a number is read."""
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--device", device]) == 2
    said = capsys.readouterr().err
    assert f"device = {device!r} is not available on this machine" in said
    assert said.count("\n") == 1
    assert len(said) < 400


def test_a_network_without_labels_has_none_to_be_guided_by(tmp_path, capsys):
    from diffusion_core.pretrained import save_net
    from tests.conftest import tiny

    save_net(
        tiny(classes=None).net,
        "plain",
        {"schedule": "linear", "data": {"name": "digits"}},
        tmp_path,
    )
    out = ["--weights", str(tmp_path), "--out", str(tmp_path / "a.png"), "--steps", "2"]
    assert main(["sample", "plain", *out, "--guidance", "2"]) == 2
    assert "this network was trained without labels" in capsys.readouterr().err
    assert main(["sample", "plain", *out]) == 2
    assert "has no labels: use none" in capsys.readouterr().err
    assert main(["sample", "plain", *out, "--labels", "none"]) == 0


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    """Only errors of use are one line: a ValueError of anything else is a bug."""

    def broken(*arguments, **named):
        raise ValueError("not enough values to unpack")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample_command, "generate", broken)
    with pytest.raises(ValueError, match="not enough values to unpack"):
        main(["sample", "mnist"])


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_the_options_are_the_arguments_of_the_function(command):
    """Each has the name and the default that the help gives."""
    options = vars(build_parser().parse_args([command, "mnist"]))
    assert options.pop("command") == command
    signature = inspect.signature(options.pop("run")).parameters
    assert options.keys() == signature.keys()
    first, *rest = signature.values()
    assert options[first.name] == "mnist"
    assert {p.name: options[p.name] for p in rest} == {p.name: p.default for p in rest}
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)


def test_help_names_every_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["train", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for name in (*RECIPES, "mnist_classifier", "--resume", "accelerate launch"):
        assert name in said


@pytest.mark.parametrize("encoding", ["cp1251", "cp932", "ascii"])
@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["evaluate"]])
def test_help_can_be_written_in_any_code_page(command, encoding, monkeypatch):
    """As it is redirected on Windows: the page lacks some of our letters."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", file)
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    file.flush()
    assert "usage: python -m diffusion_core" in file.buffer.getvalue().decode(encoding)


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, tmp_path, capsys):
    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample_command, "generate", stopped)
    assert main(["sample", "mnist"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())
