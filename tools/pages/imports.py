"""Make the picture of the package's rooms in CONTRIBUTING.md: which imports which. From the source, never by hand."""

import ast
import re

from tools import layout

PAGE = layout.ROOT / "CONTRIBUTING.md"
MATHEMATICS = (
    "schedules",
    "prediction",
    "sampling",
    "ddpm",
    "likelihood",
    "ddim",
    "sde",
    "guidance",
    "exact",
)
PICTURE = re.compile(r"(?<=<!-- made by `make pages` -->\n).*?(?=<!-- end -->)", re.DOTALL)


def edges():
    """{(room, room that it imports)}; a module outside of the rooms counts as one."""
    found = set()
    for path in sorted(layout.PACKAGE.rglob("*.py")):
        room = path.relative_to(layout.PACKAGE).parts[0].removesuffix(".py")
        found |= {
            (room, other) for other in imported(path.read_text(encoding="utf8")) if other != room
        }
    return found


def imported(source):
    """The rooms of the package that a module's source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "diffusion_core":
            yield from (alias.name for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_core."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("diffusion_core.")
            )


def direct(edges):
    """Without the edges that a longer way says, too."""
    below = {}
    for a, b in edges:
        below.setdefault(a, set()).add(b)

    def reach(room):
        return {end for other in below.get(room, ()) for end in {other} | reach(other)}

    return {(a, b) for a, b in edges if not any(b in reach(other) for other in below[a])}


def page():
    """CONTRIBUTING.md with the picture as it has to be."""
    hidden = {"_validate", "__main__"}
    drawn = {(a, b) for a, b in edges() if not {a, b} & hidden}
    inside = {edge for edge in drawn if set(edge) <= set(MATHEMATICS)}
    outside = {(a, "mathematics" if b in MATHEMATICS else b) for a, b in drawn - inside}
    lines = ["```mermaid", "flowchart TD", "  subgraph mathematics"]
    lines += [f"    {a} --> {b}" for a, b in sorted(direct(inside))]
    lines += ["  end", *(f"  {a} --> {b}" for a, b in sorted(direct(outside))), "```", ""]
    return PICTURE.sub("\n".join(lines), PAGE.read_text(encoding="utf8"))
