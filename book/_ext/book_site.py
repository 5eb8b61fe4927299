"""Sphinx extension of this book: theme options, a role and two directives.

    {chapter}`The forward process <1-intuition/forward-process>`

links to a chapter, or says that it is planned, as long as it is not in the table of contents.

    ```{animation} hero
    :alt: what the picture shows
    A caption.
    ```

shows `book/_static/hero.webp` (or .gif), and nothing where there is none.

    ```{package-api} schedules
    ```

shows every public name of `diffusion_core/schedules.py` with its signature, docstring and source.
It reads the text of the file and imports nothing, so the site is built without torch; and it
treats docstrings as plain text, so that `x_t` and `(B, *)` stand there as they were written.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective, SphinxRole

PACKAGE = Path(__file__).resolve().parents[2] / "diffusion_core"
SECTIONS = (
    "Equation",
    "Equations",
    "Shapes",
    "Arguments",
    "Returns",
    "Yields",
    "Raises",
    "Example",
    "Note",
)
THEME = {
    "show_toc_level": 2,
    "search_bar_text": "Search this book",
    "logo": {
        "text": "Learning Diffusion Models",
        "alt_text": "Learning Diffusion Models, Step by Step: home",
    },
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "use_fullscreen_button": False,
    "navbar_persistent": [],
}


def escape(text):
    """Plain text as Markdown: every mark that Markdown reads is escaped, but for `code`."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"([\\*_{}\[\]()#+\-.!|<>$~^&:@'\"])", r"\\\1", p)
        for p in parts
    )


def split_docstring(doc):
    """A docstring as (text before the first section, [(section, text), ...]), each text with its
    indentation."""
    before, sections = [], []
    for line in (doc or "").strip().splitlines():
        head, colon, rest = line.partition(":")
        if colon and head in SECTIONS:
            sections.append((head, [" " * 4 + rest.strip()]))
        elif sections:
            sections[-1][1].append(line)
        else:
            before.append(line)
    dedented = [(name, textwrap.dedent("\n".join(lines))) for name, lines in sections]
    return "\n".join(before), dedented


def text_lines(text):
    """Paragraphs of plain text as Markdown; a paragraph that is indented stands as it was written,
    in a block of its own."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", text.rstrip()):
        if paragraph.strip() and all(line.startswith("    ") for line in paragraph.splitlines()):
            lines += ["```text", *textwrap.dedent(paragraph).splitlines(), "```", ""]
        else:
            lines += [escape(" ".join(paragraph.split())), ""]
    return lines


def section_lines(name, text):
    """One section of a docstring as an entry of a definition list."""
    body = ["```python", *text.splitlines(), "```", ""] if name == "Example" else text_lines(text)
    return [name, ":   " + body[0], *("    " + line if line else "" for line in body[1:])]


def docstring_lines(node):
    """The docstring of a function, class or module as Markdown."""
    before, sections = split_docstring(ast.get_docstring(node))
    lines = text_lines(before) if before.strip() else []
    if sections:
        lines += [":::{div} docstring"]
        for name, text in sections:
            lines += section_lines(name, text)
        lines += [":::", ""]
    return lines


def arguments_text(arguments, skip_first=False):
    """A function's arguments as source text, without `self`."""
    arguments = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args
    if skip_first:
        (arguments.posonlyargs or arguments.args).pop(0)
    return ast.unparse(arguments)


def decorators(node):
    return {ast.unparse(d).split("(")[0] for d in node.decorator_list}


def fence(depth):
    return "`" * (12 - 2 * depth)


def object_lines(kind, name, signature, module, body, depth=0, options=()):
    """One object of the Python domain; the fences get shorter inwards."""
    mark = fence(depth)
    return [
        f"{mark}{{py:{kind}}} {name}{signature}",
        f":module: {module}",
        *options,
        "",
        *body,
        mark,
        "",
    ]


def source_lines(node, text):
    """The folded source of a function or class, decorators included."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    code = textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    return [
        ":::{dropdown} Source",
        ":class-container: package-source",
        "",
        "```python",
        *code.splitlines(),
        "```",
        ":::",
        "",
    ]


def function_lines(node, text, module, owner="", depth=0):
    inside = bool(owner)
    kinds = decorators(node)
    if inside and kinds & {"property", "functools.cached_property", "cached_property"}:
        result = [f":type: {ast.unparse(node.returns)}"] if node.returns else []
        return object_lines(
            "property", f"{owner}.{node.name}", "", module, docstring_lines(node), depth, result
        )
    kind, options = ("method" if inside else "function"), []
    if "classmethod" in kinds:
        options = [":classmethod:"]
    if "staticmethod" in kinds:
        options = [":staticmethod:"]
    signature = f"({arguments_text(node.args, inside and 'staticmethod' not in kinds)})"
    if node.returns:
        signature += f" -> {ast.unparse(node.returns)}"
    body = docstring_lines(node) + ([] if inside else source_lines(node, text))
    return object_lines(
        kind,
        f"{owner}.{node.name}" if inside else node.name,
        signature,
        module,
        body,
        depth,
        options,
    )


def class_lines(node, text, module):
    fields = [
        n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")
    ]
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    start = next((f for f in functions if f.name == "__init__"), None)
    if start:
        signature = f"({arguments_text(start.args, True)})"
    elif fields:
        signature = "(" + ", ".join(ast.unparse(f) for f in fields) + ")"
    else:
        signature = ""
    body = docstring_lines(node)
    if start and ast.get_docstring(start):
        body += docstring_lines(start)
    for function in functions:
        if not function.name.startswith("_"):
            body += function_lines(function, text, module, node.name, 1)
    return object_lines("class", node.name, signature, module, body + source_lines(node, text))


def module_lines(path):
    """Every public name of a module, in the order of its source, as Markdown."""
    text = path.read_text(encoding="utf8")
    tree = ast.parse(text)
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    lines = [f"```{{py:module}} {module}", "```", "", *docstring_lines(tree)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines += function_lines(node, text, module)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            lines += class_lines(node, text, module)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if (
                isinstance(target, ast.Name)
                and not target.id.startswith("_")
                and node.value is not None
            ):
                value = " ".join(ast.unparse(node.value).split())
                lines += object_lines(
                    "data",
                    target.id,
                    "",
                    module,
                    [],
                    0,
                    [f":value: {value if len(value) < 120 else value[:117] + '...'}"],
                )
    return lines


class Chapter(SphinxRole):
    """A link to a chapter that may not be written yet."""

    def run(self):
        match = re.fullmatch(r"(.+?)\s*<(.+)>", self.text, re.DOTALL)
        if not match:
            message = self.inliner.reporter.error(
                f"chapter: expected `title <folder/name>`, got {self.text!r}", line=self.lineno
            )
            return [], [message]
        title, docname = match.group(1), f"book/{match.group(2)}"
        if docname not in self.env.found_docs:
            return [nodes.inline(title, f"{title} (planned)", classes=["planned"])], []
        link = addnodes.pending_xref(
            "",
            reftype="doc",
            refdomain="std",
            refexplicit=True,
            refwarn=True,
            reftarget=f"/{docname}",
            refdoc=self.env.docname,
        )
        link += nodes.inline(title, title)
        return [link], []


class Animation(SphinxDirective):
    """An animated picture from `_static`, with its caption; nothing where the file is missing."""

    required_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self):
        static = PACKAGE.parent / "book" / "_static"
        found = [
            static / f"{self.arguments[0]}{suffix}"
            for suffix in (".webp", ".gif")
            if (static / f"{self.arguments[0]}{suffix}").is_file()
        ]
        if not found:
            return []
        figure = nodes.figure(classes=["animation"])
        figure += nodes.image(uri=f"/book/_static/{found[0].name}", alt=self.options["alt"])
        caption = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, caption)
        figure += nodes.caption("", "", *(caption.children[0].children if caption.children else []))
        return [figure]


class PackageApi(SphinxDirective):
    """The public names of one module of the package, read from its source."""

    required_arguments = 1

    def run(self):
        path = PACKAGE / f"{self.arguments[0]}.py"
        if not path.is_file():
            raise self.error(f"package-api: there is no module {path.name} in {PACKAGE.name}")
        self.env.note_dependency(str(path))
        container = nodes.container()
        self.state.nested_parse(StringList(module_lines(path), source=str(path)), 0, container)
        return container.children


def set_theme_options(app, config):
    config.html_theme_options.update(THEME)


def setup(app):
    app.add_config_value(
        "comments_config", {}, "html"
    )  # Jupyter Book sets it for an extension that this site leaves out
    app.add_role("chapter", Chapter())
    app.add_directive("animation", Animation)
    app.add_directive("package-api", PackageApi)
    app.connect("config-inited", set_theme_options, priority=1)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
