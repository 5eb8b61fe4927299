"""The example of the README runs as it stands there."""

import re

import torch
from PIL import Image

from diffusion_core.evaluation import load_classifier
from diffusion_core.networks import classify
from tools import layout


def test_the_example_runs_and_paints_what_it_says(tmp_path, monkeypatch):
    """As somebody pastes it; a classifier reads the digits, but for one at most."""
    readme = (layout.ROOT / "README.md").read_text(encoding="utf8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    torch.manual_seed(0)
    scope = {}
    exec(example, scope)
    asked = torch.tensor([3, 1, 4, 1, 5])
    read, _ = classify(load_classifier()[0], scope["x"])
    assert (read == asked).sum() >= 4
    with Image.open("pi.png") as picture:
        assert picture.width > picture.height
