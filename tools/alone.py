"""Does each chapter run alone? `python -m tools.alone [CHAPTER ...]` (`make alone`).

Installs the last commit from the repository's own git URL into an empty folder, as Colab would from its address, copies every
notebook into a folder of its own, and runs it there with strict nbval: no file of the working tree is in reach.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import layout


def install(folder):
    """The package of the last commit, with its weights, in a folder."""
    url = f"git+{layout.ROOT.as_uri()}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, url], check=True)


def run_alone(path, folder, site):
    """The exit status of nbval over one notebook in an empty folder."""
    own = folder / path.stem
    own.mkdir()
    shutil.copy(path, own)
    environment = os.environ | layout.kernel_environment() | {"PYTHONPATH": str(site)}
    environment.pop("MPLBACKEND")  # nbval's kernels choose the inline backend themselves
    where = "import diffusion_core; print(diffusion_core.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=own, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site), f"the installed package is not the one imported: {found.stdout}"
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-cell-timeout=600", "--rootdir", str(own), path.name]
    return subprocess.run(command, cwd=own, env=environment).returncode


def main():
    chapters = [Path(name).resolve() for name in sys.argv[1:]] or layout.chapters()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        install(folder / "site")
        failed = [path.stem for path in chapters if run_alone(path, folder, folder / "site")]
    print(f"{len(chapters) - len(failed)} of {len(chapters)} chapters run alone" + (f"; not: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
