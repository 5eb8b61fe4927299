"""Bugs, generated mechanically from a module's source: one small change each, as a person might make it."""

import ast
import collections
import copy
import dataclasses
from dataclasses import dataclass

ROOTS = {"sqrt", "square", "log", "exp", "abs", "cos", "sin"}
COMMUTATIVE = {"min", "max", "math.gcd"}
SWAPPED_NAMES = [("t", "s"), ("x_0", "x_t"), ("eps", "noise"), ("signal", "noise")]
PAIRS = "Add Sub, Mult Div, Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, And Or, BitAnd BitOr"
OPPOSITE = {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}
for one, other in (map(ast.__dict__.get, pair.split()) for pair in PAIRS.split(", ")):
    OPPOSITE |= {one: other, other: one}


@dataclass(frozen=True)
class Mutant:
    """One bug: where it is, what was changed, and the whole module with the change."""

    module: str
    function: str
    line: int
    what: str  # "dropped sqrt: (1 - alpha_bar).sqrt() -> 1 - alpha_bar"
    source: str

    @property
    def name(self):
        return f"{self.module}.py, {self.function}: {self.what}"


def mutants(module, source):
    """Every mutant of a module, in order of the source."""
    tree = ast.parse(source)
    unchanged, lines = ast.unparse(tree), source.split("\n")
    found, seen = [], {unchanged}
    for parent, field, i, node, function in list(_places(tree)):
        for what, replacement in _changes(node, function):
            _put(parent, field, i, replacement if replacement is not None else ast.Pass())
            text = ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, field, i, node)
            if text not in seen:
                seen.add(text)
                before, after = _text(node), _text(replacement) if replacement else "(nothing)"
                where = "" if len(before) > 12 else f" in `{lines[node.lineno - 1].strip()}`"
                found.append(
                    Mutant(
                        module,
                        function.name,
                        node.lineno,
                        f"{what}: {before} -> {after}{where}",
                        text,
                    )
                )
    return _numbered(found)


def _numbered(found):
    """Mutants whose names are alike get a number, so that a verdict belongs to one of them."""
    count = collections.Counter()
    for i, mutant in enumerate(found):
        count[mutant.name] += 1
        if count[mutant.name] > 1:
            found[i] = dataclasses.replace(mutant, what=f"{mutant.what} (no. {count[mutant.name]})")
    return found


def _places(tree):
    """(parent, field, index, node, innermost function) of everything that may be changed: bodies and defaults, not the texts of
    messages, annotations or decorators."""
    stack = [(None, None, None, tree, None)]
    while stack:
        parent, field, i, node, function = stack.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(node, ast.FunctionDef):
            function = node
        elif function is not None and hasattr(node, "lineno"):
            yield parent, field, i, node, function
        children = []
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for k, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    children.append((node, name, k, child, function))
        stack.extend(reversed(children))


def _put(parent, field, i, node):
    if i is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[i] = node


def _changes(node, function):
    """(kind, replacement) for one node; a replacement of None deletes a statement."""
    if isinstance(node, ast.BinOp):
        yield from _binary(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield ("dropped sign" if isinstance(node.op, ast.USub) else "dropped not"), node.operand
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in OPPOSITE:
                changed = copy.deepcopy(node)
                changed.ops[i] = OPPOSITE[type(op)]()
                yield "comparison", changed
    elif isinstance(node, ast.BoolOp):
        yield "and/or", ast.BoolOp(OPPOSITE[type(node.op)](), node.values)
        for i in range(len(node.values)):
            rest = [v for j, v in enumerate(node.values) if j != i]
            yield "dropped condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.IfExp):
        yield "swapped branches", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant):
        yield from _constant(node)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "dropped statement", None
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPPOSITE:
        yield "sign", ast.AugAssign(node.target, OPPOSITE[type(node.op)](), node.value)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        names = {a.arg for a in function.args.args} | {
            n.id
            for n in ast.walk(function)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        for pair in SWAPPED_NAMES:
            if node.id in pair and set(pair) <= names:
                other = pair[1 - pair.index(node.id)]
                yield "swapped name", ast.Name(other, ast.Load())


def _binary(node):
    if isinstance(node.op, ast.Pow):
        yield "dropped power", node.left
    elif type(node.op) in OPPOSITE:
        yield (
            "sign" if isinstance(node.op, ast.Add | ast.Sub) else "operator",
            ast.BinOp(node.left, OPPOSITE[type(node.op)](), node.right),
        )
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        kind = "dropped term" if isinstance(node.op, ast.Add | ast.Sub) else "dropped factor"
        yield kind, node.left
        yield (
            kind,
            ast.UnaryOp(ast.USub(), node.right) if isinstance(node.op, ast.Sub) else node.right,
        )


def _constant(node):
    value = node.value
    if isinstance(value, bool):
        yield "flipped", ast.Constant(not value)
    elif isinstance(value, int):
        yield "off by one", ast.Constant(value + 1)
        yield "off by one", ast.Constant(value - 1)
    elif isinstance(value, float):
        yield "other constant", ast.Constant(value * 1.5 if value else 0.5)


def _call(node):
    f = node.func
    if isinstance(f, ast.Attribute) and f.attr in ROOTS and not node.args:
        yield f"dropped {f.attr}", f.value
    elif isinstance(f, ast.Attribute) and f.attr in ROOTS and len(node.args) == 1:
        yield f"dropped {f.attr}", node.args[0]
    elif isinstance(f, ast.Attribute) and f.attr == "clamp":
        yield "dropped clamp", f.value
    if ast.unparse(f) in COMMUTATIVE:
        return
    for i in range(len(node.args) - 1):
        if any(isinstance(a, ast.Starred) for a in node.args[i : i + 2]):
            continue
        changed = copy.deepcopy(node)
        changed.args[i], changed.args[i + 1] = changed.args[i + 1], changed.args[i]
        yield "swapped arguments", changed


def _text(node, most=90):
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= most else text[: most - 1] + "…"
