"""The syntax of a piece of code in a form that is the same in every version of Python, so that its hash is, too."""

import ast


def syntax(node):
    """A syntax tree as nested tuples, without what is empty: in that, and in how they print a tree, versions differ."""
    if isinstance(node, ast.AST):
        fields = ((name, syntax(value)) for name, value in ast.iter_fields(node))
        return type(node).__name__, *(field for field in fields if field[1] not in (None, ()))
    if isinstance(node, list):
        return tuple(map(syntax, node))
    return None if node is None else repr(node)
