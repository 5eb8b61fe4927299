"""Reading the chapters' prose, and writing Markdown that means what it says."""

import json
import os
import re

from tools.layout import page_title


def generated(title, about, body, nothing):
    """The text of a generated page: heading, what the page is, the lines of its body; `nothing` where there is no body yet."""
    return "\n".join([f"# {title}", "", about.strip(), "", *(body or [nothing])]).rstrip() + "\n"


def headings_and_text(path):
    """A chapter's prose as (heading path, text) pieces in order; the heading path is a tuple of levels 1 to 3."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    trail, block, fenced = [], [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        match = None if fenced else re.match(r"(#{1,3}) +(.+?)\s*$", line)
        if match:
            yield tuple(trail), "\n".join(block)
            trail, block = [*trail[: len(match.group(1)) - 1], match.group(2)], []
        else:
            block.append(line)
    yield tuple(trail), "\n".join(block)


def anchor(heading):
    """The anchor that the site gives to a heading (the rule of GitHub, as MyST applies it)."""
    plain = re.sub(r"\$[^$]*\$|[`*]", "", heading)
    return re.sub(r"[^\w\u4e00-\u9fff\- ]", "", plain.strip().lower().replace(" ", "-"))


def link_to(page, path, trail=()):
    """A link from one source file to another, to the last heading of `trail` where one is given."""
    target = os.path.relpath(path, page.parent).replace(os.sep, "/")
    if len(trail) > 1:
        return (
            f"[{cell_text(page_title(path))}, {cell_text(trail[-1])}]({target}#{anchor(trail[-1])})"
        )
    return f"[{cell_text(page_title(path))}]({target})"


def cell_text(text):
    """Plain text as Markdown: underscores, stars and the like stand for themselves; code and formulas stay as they are."""
    parts = re.split(r"(`[^`]+`|\$[^$]+\$)", " ".join(text.split()))
    return "".join(p if p[:1] in "`$" else re.sub(r"([\\*_\[\]<>{}])", r"\\\1", p) for p in parts)


def in_table(text):
    """The same inside a table's cell, where a bar would end the cell."""
    return cell_text(text).replace("|", "\\|")
