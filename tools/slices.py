"""The part of a chapter that leads to its equation checks: those cells, and the earlier cells that set what they use."""

import ast
import hashlib
import json
from dataclasses import dataclass

from tools import layout
from tools.names import flow, stored
from tools.syntax import syntax

RAISED = "the check's cell raised"


@dataclass
class Slice:
    """Code cells in order, the equations that their checks name, and the source of each cell."""

    chapter: str
    cells: list
    equations: list

    @property
    def mark(self):
        """A hash of the cells' syntax: that of any version of Python, however it would print them."""
        return hashlib.sha256(repr([syntax(ast.parse(cell)) for cell in self.cells]).encode()).hexdigest()[:16]

    def failures(self):
        """Run the cells; {equation: [claim, ...]} of the checks that failed. A cell that raises fails its own checks, with the
        claim RAISED."""
        from diffusion_core import checks

        failed = {}
        real = checks.check

        def recording(claim, measured, *bound, equation=None, **bounds):
            try:
                real(claim, measured, *bound, equation=equation, **bounds)
            except AssertionError:
                for key in _keys(equation):
                    failed.setdefault(key, []).append(claim)

        scope = {"__name__": "__main__"}
        checks.check = recording
        try:
            for source in self.cells:
                try:
                    exec(compile(source, self.chapter, "exec"), scope)
                except Exception:
                    for key in _equations_of(source):
                        failed.setdefault(key, []).append(RAISED)
        finally:
            checks.check = real
        return failed


def equation_slice(path, keys=None):
    """The slice of one notebook; with `keys`, the part of it that leads to the checks of these equations."""
    notebook = json.loads(path.read_text(encoding="utf8"))
    sources = [_without_shown_failures(_plain("".join(c["source"]))) for c in notebook["cells"] if c["cell_type"] == "code"]
    trees = [ast.parse(source) for source in sources]
    needed, used, keep = set(), set(), []
    for source, tree in reversed(list(zip(sources, trees, strict=True))):
        found = _equations_of(source)
        if (found if keys is None else set(found) & set(keys)) or stored(tree.body) & needed:
            keep.append(source)
            reads, sets = flow(tree.body)
            needed = (needed - sets) | reads
            used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    keep = [_with_imports_of(used, source) for source in reversed(keep)]
    equations = list(dict.fromkeys(key for source in keep for key in _equations_of(source)))
    return Slice(layout.chapter_name(path), keep, equations)


def _with_imports_of(names, source):
    """A cell, without comments, that imports these names only: so a slice stays the same when the chapter imports something new."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for statements in (getattr(node, part, None) for part in ("body", "orelse", "finalbody")):
            if isinstance(statements, list):
                statements[:] = [kept for kept in (_fewer(names, s) for s in statements) if kept] or [ast.Pass()] * bool(statements)
    return ast.unparse(ast.fix_missing_locations(tree))


def _fewer(names, statement):
    if isinstance(statement, ast.Import | ast.ImportFrom):
        statement.names = [a for a in statement.names if (a.asname or a.name.split(".")[0]) in names]
        return statement if statement.names else None
    return statement


def _plain(source):
    """A cell without IPython's % and ! lines."""
    lines = []
    for line in source.split("\n"):
        text = line.lstrip()
        lines.append(line[: len(line) - len(text)] + "pass" if text.startswith(("%", "!")) else line)
    return "\n".join(lines)


def _without_shown_failures(source):
    """A cell without its `with caught():` blocks, where a chapter shows how a check fails."""

    class Remove(ast.NodeTransformer):
        def visit_With(self, node):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            shown = any(ast.unparse(call.func) == "caught" for call in calls)
            return ast.copy_location(ast.Pass(), node) if shown else self.generic_visit(node)

    if "caught" not in source:
        return source
    return ast.unparse(ast.fix_missing_locations(Remove().visit(ast.parse(source))))


def _equations_of(source):
    """The equation keys that a cell's check calls name."""
    return [
        key
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check"
        for keyword in node.keywords
        if keyword.arg == "equation" and isinstance(keyword.value, ast.Constant)
        for key in _keys(keyword.value.value)
    ]


def _keys(equation):
    return [key.strip() for key in (equation or "").split(";") if key.strip()]
