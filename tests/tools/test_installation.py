"""What is pinned, what is installed, what a plain install brings."""

import re
import subprocess
import sys
import tomllib
import zipfile

from tests.tools.files import copy_of_the_project
from tools import layout


def requirement_lines(name):
    lines = [
        line.split("#")[0].strip()
        for line in (layout.ROOT / name).read_text(encoding="utf8").splitlines()
    ]
    return [line for line in lines if line]


def test_constraints_pin_what_is_tested():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in requirement_lines("constraints.txt")
    }
    for name in (
        "requirements.txt",
        "requirements-book.txt",
        "requirements-compare.txt",
        "requirements-text-to-image.txt",
        "requirements-test.txt",
        "requirements-lab.txt",
    ):
        for line in requirement_lines(name):
            requirement = Requirement(line)
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(pin, prereleases=True), (
                f"{name}: {line} does not admit the tested {pin}"
            )


def test_every_pin_can_be_installed_on_the_oldest_python_that_is_promised():
    """Some projects drop the first patches of a Python version (3.11.0 to 3.11.4, for instance,
    which Debian 12 has); such a pin would stop `make book` there."""
    from importlib import metadata

    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    project = tomllib.loads((layout.ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    pins = {
        (canonicalize_name(name), version)
        for name, version in (line.split("==") for line in requirement_lines("constraints.txt"))
    }
    needs = {
        found.name: found.metadata.get("Requires-Python") or ""
        for found in metadata.distributions()
        if (canonicalize_name(found.name), found.version) in pins
    }
    assert len(needs) > 100, "too few of the pins are installed to say anything"
    too_new = {
        name: need for name, need in needs.items() if not SpecifierSet(need).contains(oldest)
    }
    assert not too_new


def test_make_installs_only_what_is_pinned():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    assert "pip install --quiet --disable-pip-version-check -c constraints.txt" in makefile
    for arguments in re.findall(r"^\t\$\(PIP\) (.+)$", makefile, re.MULTILINE):
        plain = re.sub(r"-r requirements[\w-]*\.txt|--no-deps --editable \.", "", arguments)
        assert not plain.strip(), f"not from a requirements file: {plain.strip()}"


def test_the_site_needs_no_torch():
    names = " ".join(requirement_lines("requirements-book.txt")).lower()
    assert "torch" not in names and "diffusers" not in names


def test_requirements_are_bounds_and_no_pins():
    """Installing the package must not replace what Colab brings; whether the bounds admit it is seen by the weekly job there."""
    from packaging.requirements import Requirement

    for line in requirement_lines("requirements.txt"):
        assert "==" not in line and Requirement(line).specifier, f"{line}: bounds, no pin"


def test_a_plain_install_brings_weights_and_all_modules(tmp_path):
    root = copy_of_the_project(tmp_path / "source")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(tmp_path),
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    for path in layout.package_files():
        assert path.relative_to(layout.ROOT).as_posix() in inside, f"{path.name} is not installed"
