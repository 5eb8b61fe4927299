"""Which names a piece of code reads before it has set them, and which it has certainly set when it is through: what a cell
needs of the cells before it, and what it gives to those after it."""

import ast
import dis
import inspect


def flow(statements):
    """(names read from before, names set whatever happens) of statements in order. A function counts as reading what its body
    reads."""
    reads, sets = set(), set()
    for statement in statements:
        read, written = _of_one(statement)
        reads |= read - sets
        sets |= written
    return reads, sets


def stored(statements):
    """Every name that one of these statements sets, in whatever case."""
    return {i.argval for i in dis.get_instructions(_compiled(statements)) if i.opname == "STORE_NAME"}


def _of_one(statement):
    match statement:
        case ast.For(iter=over, target=target, body=body):  # taken to run at least once
            read, inside = flow(body)
            targets = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            return _reads(over) | (read - targets) | flow(statement.orelse)[0], targets | inside
        case ast.With(items=items, body=body):
            entered = [ast.Assign([i.optional_vars], i.context_expr) if i.optional_vars else ast.Expr(i.context_expr) for i in items]
            return flow([*entered, *body])
        case ast.If(test=condition, body=body, orelse=orelse) | ast.While(test=condition, body=body, orelse=orelse):
            return _reads(condition) | flow(body)[0] | flow(orelse)[0], flow(body)[1] & flow(orelse)[1]
        case ast.Try():
            parts = [statement.body, *(h.body for h in statement.handlers), statement.orelse, statement.finalbody]
            wanted = [_reads(h.type) for h in statement.handlers if h.type]
            return set().union(*wanted, *(flow(part)[0] for part in parts)), flow(statement.finalbody)[1]
        case _:
            return _loaded([statement]), stored([statement])


def _reads(expression):
    return _loaded([ast.Expr(expression)])


def _loaded(statements):
    """The names that are looked up when these statements run, in functions inside them too; those local to a function are not."""
    found, todo = set(), [_compiled(statements)]
    while todo:
        code = todo.pop()
        found |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
        todo += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return found


def _compiled(statements):
    return compile(ast.fix_missing_locations(ast.Module(list(statements), [])), "cell", "exec")
