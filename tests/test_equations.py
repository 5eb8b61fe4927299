"""The map from equations to functions."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_core
from diffusion_core import EQUATIONS

PACKAGE = Path(diffusion_core.__file__).parent
WRITTEN = {  # what a docstring calls a paper, where that is not its key
    "iDDPM": "Nichol & Dhariwal 2021",
    "VDM": "Kingma et al. 2021",
    "Distillation": "Salimans & Ho 2022",
    "ADM": "Dhariwal & Nichol 2021",
    "CFG": "Ho & Salimans 2022",
    "ZeroSNR": "Lin et al. 2024",
    "SDE": "Y. Song et al. 2021",
    "P2": "Choi et al. 2022",
    "LoRA": "Hu et al. 2021",
    "Attention": "Vaswani et al. 2017",
    "FID": "Heusel et al. 2017",
    "KID": "Binkowski et al. 2018",
    "VAE": "Kingma & Welling 2014",
    "LDM": "Rombach et al. 2022",
}


def named(docstring, paper):
    """The equations of this paper that a docstring's Equation section names: {"4", "sec. 2", ...}."""
    section = re.search(r"Equation:(.*?)(?=\n[A-Z]\w+[^\n:]*:|\Z)", docstring, re.DOTALL).group(1)
    if WRITTEN.get(paper, paper) not in section:
        return set()
    found = set()
    for kind, first, last in re.findall(
        r"\b(eq|alg|sec|app)\. ([\dA-Z.]*[\dA-Z])(?:-(\d+))?", section
    ):
        prefix = "" if kind == "eq" else f"{kind}. "
        numbers = range(int(first), int(last) + 1) if last else [first]
        found |= {f"{prefix}{number}" for number in numbers}
    return found


def definition(place):
    """The docstring of `module.name` or `module.Class.name`, from the source alone."""
    parts = place.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        file = PACKAGE.joinpath(*parts[:cut]).with_suffix(".py")
        if file.is_file():
            node = ast.parse(file.read_text(encoding="utf8"))
            for name in parts[cut:]:
                node = next((n for n in node.body if getattr(n, "name", None) == name), None)
                assert node is not None, f"{file.name} has no {name}"
            return ast.get_docstring(node)
    raise AssertionError(f"no module holds {place}")


@pytest.mark.parametrize("key", EQUATIONS)
def test_the_function_says_that_it_is_the_equation(key):
    paper, _, number = key.partition(" ")
    assert number in named(definition(EQUATIONS[key]), paper)


def test_an_equation_that_a_docstring_does_not_name_is_missed():
    docstring = "A step.\n\nEquation: DDPM eq. 6-7 and alg. 2, line 4.\nReturns: sec. 9."
    assert named(docstring, "DDPM") == {"6", "7", "alg. 2"}
    assert named(docstring, "DDIM") == set()


def test_the_package_itself_loads_no_torch():
    code = "import sys, diffusion_core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
