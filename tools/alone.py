"""Does each chapter run alone? `python -m tools.alone [--newest] [CHAPTER ...]` (`make alone`).

Installs the last commit from the repository's own git URL into an empty folder, as Colab would from its address, copies every
notebook into a folder of its own, and runs it there with nbval: no file of the working tree is in reach. Outputs are not compared
(--nbval-lax), for they are printed under other versions and settings; every check of a chapter must hold.

With --newest nothing is taken from this environment: a new one gets the newest packages that the requirements admit.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tools import layout

RUNNER = ("nbval", "pytest", "ipykernel")  # what runs a notebook, besides what the chapters need


def install(folder):
    """The package of the last commit, with its weights, in a folder."""
    url = f"git+{layout.ROOT.as_uri()}"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, url],
        check=True,
    )


def newest(folder):
    """The Python of a new environment with the newest packages that the chapters and the package admit."""
    venv.create(folder, with_pip=True, upgrade_deps=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    package = f"diffusion-core[compare] @ git+{layout.ROOT.as_uri()}"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--upgrade", package, *RUNNER], check=True
    )
    subprocess.run([python, "-m", "pip", "list"], check=True)
    return python


def run_alone(path, folder, python, site):
    """The exit status of nbval over one notebook in an empty folder."""
    own = folder / path.stem
    own.mkdir()
    shutil.copy(path, own)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import diffusion_core; print(diffusion_core.__file__)"
    found = subprocess.run(
        [python, "-c", where], cwd=own, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(folder), (
        f"the installed package is not the one imported: {found.stdout}"
    )
    options = [
        "-q",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=600",
        "--rootdir",
        str(own),
    ]
    return subprocess.run(
        [python, "-m", "pytest", *options, path.name], cwd=own, env=environment
    ).returncode


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "chapters",
        nargs="*",
        type=Path,
        help="notebooks to run (default: every chapter of _toc.yml)",
    )
    parser.add_argument(
        "--newest", action="store_true", help="in a new environment with the newest packages"
    )
    options = parser.parse_args()
    chapters = [path.resolve() for path in options.chapters] or layout.chapters()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        site = folder / "site"
        site.mkdir()
        python = newest(folder / "newest") if options.newest else sys.executable
        if not options.newest:
            install(site)
        failed = [path.stem for path in chapters if run_alone(path, folder, python, site)]
    print(
        f"{len(chapters) - len(failed)} of {len(chapters)} chapters run alone"
        + (f"; not: {', '.join(failed)}" if failed else "")
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
