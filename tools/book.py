"""Build the website: `python -m tools.book` (`make book`). Warnings are errors; the outputs of the chapters are the stored ones."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools.layout import ROOT, chapters, toc_entries


def build(out=ROOT, clean=False, quiet=True):
    """Build into `out/_build/html` and return that folder; RuntimeError with Sphinx's words where it fails."""
    target = Path(out) / "_build"
    if clean:
        shutil.rmtree(target, ignore_errors=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(ROOT),
        "-n",
        "-W",
        "--keep-going",
        "--path-output",
        str(out),
    ]
    env = {**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command + (["-q"] if quiet else []),
        cwd=ROOT,
        env=env,
        text=True,
        encoding="utf8",
        errors="replace",
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(
            target / ".doctrees", ignore_errors=True
        )  # so that the next build shows the same warnings again
        raise RuntimeError(f"the site was not built:\n{done.stdout or ''}")
    return target / "html"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--clean", action="store_true", help="build every page anew (default: only what changed)"
    )
    parser.add_argument("--verbose", action="store_true", help="show what Sphinx says")
    options = parser.parse_args()
    print(
        f"Building {len(toc_entries())} pages, {len(chapters())} of them chapters that run …",
        flush=True,
    )
    start = time.time()
    try:
        html = build(clean=options.clean, quiet=not options.verbose)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"Done in {time.time() - start:.0f} s. Open {(html / 'index.html').as_uri()}")
    print("or run `make serve` and open http://127.0.0.1:8000/")


if __name__ == "__main__":
    main()
