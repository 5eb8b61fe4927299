"""Run chapters from top to bottom and store their outputs: `python -m tools.execute [CHAPTER.ipynb …]` (`make execute`).

Each chapter runs in a fresh kernel, from its own folder, without a GPU and without progress bars. Afterwards the notebook
holds its outputs, the hashes of its code cells and of the files of the package that it reached (tools/stale.py; a test
compares them), and nothing that changes from run to run; `book/_data/runs/` holds how long it took, with which versions,
and what every check measured.
A chapter in which a cell fails, warns or prints an address in memory is not stored.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools import environment, layout, stale

LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "accelerate",
    "diffusers",
    "transformers",
    "peft",
    "denoising-diffusion-pytorch",
)
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RECORDER = (
    "--IPKernelApp.exec_lines=__import__('tools.opened')"  # before the first cell; leaves no name
)
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


class NotStored(Exception):
    """A chapter whose outputs may not be stored, and why."""


def clean(nb):
    """Remove from a notebook whatever differs between two equal runs, and give every cell an id."""
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": KERNELSPEC,
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            **{k: v for k, v in nb.metadata.items() if k in {"book", "mystnb"}},
        }
    )
    nb.nbformat, nb.nbformat_minor = 4, 5
    for number, cell in enumerate(nb.cells):
        cell.setdefault("id", f"cell-{number}")
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in {"tags", "cellView", "mystnb", "book"}}
        )
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output["metadata"] = nbformat.from_dict(
                    {k: v for k, v in output["metadata"].items() if k != "needs_background"}
                )


def look_for_trouble(nb):
    """Raise NotStored for outputs that a reader should not see, or that the next run would not repeat."""
    for number, cell in enumerate(c for c in nb.cells if c.cell_type == "code"):
        for output in cell.outputs:
            text = output.get("text", "") or "".join(
                str(output.get("data", {}).get(kind, "")) for kind in ("text/plain", "text/html")
            )
            where = f"code cell {number + 1} ({''.join(cell.source).splitlines()[0][:60]!r})"
            if output.output_type == "stream" and output.name == "stderr":
                raise NotStored(f"{where} writes to stderr:\n{text.strip()[:1500]}")
            if ADDRESS.search(text):
                raise NotStored(
                    f"{where} prints an address in memory: {ADDRESS.search(text).group()}; end the line with a semicolon"
                )
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                raise NotStored(f"{where} shows a widget; use a plain progress bar")


def run(path, timeout=600):
    """Execute one notebook in place; returns the seconds it took. Raises NotStored, and then leaves the file untouched."""
    path = Path(path).resolve()
    nb = nbformat.read(path, as_version=4)
    digests = (
        stale.package_digests()
    )  # now: what changes while the chapter runs has to make it stale
    with tempfile.TemporaryDirectory() as scratch:
        ledger, opened = Path(scratch, "ledger.jsonl"), Path(scratch, "opened.txt")
        env = {
            **environment.kernel_environment(),
            "DIFFUSION_OPENED": str(opened),
            "DIFFUSION_LEDGER": str(ledger),
            "DIFFUSION_CHAPTER": layout.chapter_name(path),
        }
        client = NotebookClient(
            nb,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
            record_timing=False,
            extra_arguments=["--log-level=ERROR", RECORDER],
        )
        start = time.perf_counter()
        try:
            client.execute(env=env)
        except CellExecutionError as error:
            raise NotStored(ANSI.sub("", str(error))) from None
        seconds = time.perf_counter() - start
        checks = (
            [json.loads(line) for line in ledger.read_text(encoding="utf8").splitlines()]
            if ledger.exists()
            else []
        )
        reached = opened.read_text(encoding="utf8").splitlines()
    clean(nb)
    look_for_trouble(nb)
    nb.metadata["book"] = nbformat.from_dict(stale.record(nb, reached, digests))
    nbformat.validate(nb)
    write(path, nbformat.writes(nb) + "\n")
    if path.is_relative_to(layout.BOOK):
        write(
            layout.run_file(path),
            json.dumps(record(path, seconds, checks), indent=1, ensure_ascii=False) + "\n",
        )
    return seconds


def record(path, seconds, checks):
    """What is kept about a run beside the notebook itself."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    for check in checks:
        check.pop("chapter", None)
    return {
        "chapter": layout.chapter_name(path),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": versions,
        "checks": checks,
    }


def write(path, text):
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".tmp")
    new.write_text(text, encoding="utf8", newline="\n")
    new.replace(path)


def stale_chapters(paths):
    """Those of some notebooks whose stored outputs are out of date; prints why."""
    digests = stale.package_digests()
    why = {path: stale.reasons(nbformat.read(path, as_version=4), digests) for path in paths}
    for path, reasons in why.items():
        if reasons:
            print(f"{os.path.relpath(path, layout.ROOT)} is stale: {', '.join(reasons)}")
    return [path for path in paths if why[path]]


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
        "--stale",
        action="store_true",
        help="only those whose stored outputs are out of date, and say why",
    )
    parser.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="for one cell (default 600)"
    )
    options = parser.parse_args()
    todo = options.chapters or layout.chapters()
    if options.stale:
        todo = stale_chapters(todo)
    if not todo:
        print("Nothing to run: every stored output is current.")
    failed = 0
    for path in todo:
        print(f"{os.path.relpath(path, layout.ROOT)} … ", end="", flush=True)
        try:
            print(f"{run(path, options.timeout):.1f} s")
        except NotStored as reason:
            failed += 1
            print(f"NOT STORED\n{reason}\n")
    if any(Path(path).resolve().is_relative_to(layout.BOOK) for path in todo):
        from tools import pages

        pages.write_all()
    sys.exit(f"{failed} of {len(todo)} chapters were not stored" if failed else 0)


if __name__ == "__main__":
    main()
