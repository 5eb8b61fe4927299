"""The cells of a chapter that prove equations: those in which a check names one, `equation="DDPM 4"`.

Each of them runs alone, after the cells tagged `given` that stand before it; a test says so. Thus a bug in the package is tried
on these few cells, not on the chapter.
"""

import ast
import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from unittest import mock

from tools import layout
from tools.mutation.syntax import syntax

RAISED = "the check's cell raised"


@dataclass
class Proof:
    """The sources of some cells of a chapter, in order."""

    chapter: str
    cells: list

    @property
    def mark(self):
        """A hash of the cells' syntax: that of any version of Python, however it would print them."""
        return hashlib.sha256(
            repr([syntax(ast.parse(cell)) for cell in self.cells]).encode()
        ).hexdigest()[:16]

    def run(self):
        """Run the cells, and note what their checks find."""
        with Run() as run:
            for source in self.cells:
                run.cell(source)
        return run


class Run:
    """Cells run one after another, and what their checks find: `failed`, {equation: [claim, ...]}, and `held`, the equations of
    those that did not fail. A check that fails does not stop its cell; a cell that raises fails its equations (a given one:
    "what is given"), with the claim RAISED."""

    def __init__(self):
        self.failed, self.held = {}, set()
        self._scope, self._shown = {"__name__": "__main__"}, False

    def __enter__(self):
        """From now on `check` only notes what it finds."""
        from diffusion_core import checks

        self._check = checks.check
        self._patch = mock.patch.object(checks, "check", self._noting)
        self._patch.start()
        return self

    def __exit__(self, *error):
        self._patch.stop()

    def cell(self, source):
        try:
            exec(compile(source, "cell", "exec"), self._scope)
        except Exception as error:
            for key in equations(source) or ["what is given"]:
                self.failed.setdefault(key, []).append(f"{RAISED}: {error!r}")
        if "caught" in self._scope:
            self._scope["caught"] = self._caught

    def _noting(self, claim, *measured, equation=None, **bounds):
        try:
            self._check(claim, *measured, equation=equation, **bounds)
            self.held |= set(_keys(equation))
        except AssertionError:
            for key in _keys(equation) if not self._shown else ():
                self.failed.setdefault(key, []).append(claim)

    @contextlib.contextmanager
    def _caught(self):
        """What the chapters call `caught`: there they show how a check fails."""
        self._shown = True
        try:
            yield
        finally:
            self._shown = False


def equations(source):
    """The equations that the checks of a cell name."""
    return [key for names in re.findall(r'\bequation="([^"]+)"', source) for key in _keys(names)]


def of_chapter(path, key=None):
    """The proof of one equation in a chapter, or of all that it proves: the cells that name it, and the given ones before."""
    wanted, given = [], []
    for source, tags in code(path):
        if key in equations(source) if key else equations(source):
            wanted += [*given, source]
            given = []
        elif "given" in tags:
            given.append(source)
    return Proof(layout.chapter_name(path), wanted)


def proven_by(path):
    """The equations that a chapter's checks name, in order."""
    return list(dict.fromkeys(key for source, _ in code(path) for key in equations(source)))


def code(path):
    """A chapter's code cells, without IPython's % and ! lines: [(source, tags), ...]."""
    for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
        if cell["cell_type"] == "code":
            plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)
            yield plain, cell.get("metadata", {}).get("tags", [])


def _keys(equation):
    return [key.strip() for key in (equation or "").split(";") if key.strip()]
