"""Imported in a kernel before its first cell: writes every file of the package that the kernel opens to $DIFFUSION_OPENED.

A line a file, relative to the package. A module counts as its source, also where Python reads the compiled one.
"""

import functools
import importlib.util
import os
import sys

import safetensors

from tools import layout


class Recorder:
    """Hears Python's audit event "open" and writes each file of the package to `log`, once."""

    def __init__(self, log):
        self.log, self.seen = log, set()

    def __call__(self, event, arguments):
        if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = source(os.path.realpath(os.fsdecode(arguments[0])))
        if path.startswith(f"{layout.PACKAGE}{os.sep}") and path not in self.seen:
            self.seen.add(path)
            with open(self.log, "a", encoding="utf8") as file:
                file.write(f"{os.path.relpath(path, layout.PACKAGE).replace(os.sep, '/')}\n")


def source(path):
    """The source of a compiled module; any other path as it is."""
    if not path.endswith(".pyc"):
        return path
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:  # compiled, but not in a __pycache__
        return path


def audited(safe_open):
    """safetensors opens files in Rust, where Python raises no event: this raises it."""

    @functools.wraps(safe_open)
    def opened(filename, *arguments, **named):
        sys.audit("open", filename, "rb", os.O_RDONLY)
        return safe_open(filename, *arguments, **named)

    return opened


if log := os.environ.get("DIFFUSION_OPENED"):
    open(log, "a").close()  # there, if empty: whoever reads it knows that the recorder ran
    sys.addaudithook(Recorder(log))
    safetensors.safe_open = audited(safetensors.safe_open)
