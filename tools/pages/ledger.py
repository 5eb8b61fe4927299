"""Make book/reference/ledger.md: every displayed equation of a paper, the check that proves it, the bugs that check has caught.

From tools/pages/equations.py, never by hand: `make pages` rewrites it, and a test compares.
"""

import re

from tools import layout
from tools.pages import equations
from tools.pages.markdown import cell_text, generated, in_table, link_to

PAGE = layout.BOOK / "reference" / "ledger.md"
ABOUT = """
Every equation of a paper that a chapter displays is listed here, with the check that the chapter runs for it, the bound of
that check, what it measured when the chapter last ran, and bugs, put mechanically into the package, that made it fail.
The search for such a bug stops at the first in each chapter, so the number of bugs is a lower bound; – means that nothing was searched.
Where the check or the function has been edited since the search, the table says so.
A *definition* counts as proven if a check shows that the code computes it. An *identity* or a *theorem* counts only
if, besides, at least one [injected bug](bugs.md) makes its check fail: a check that nothing can fail proves nothing.

This page is made from the chapters and their last run by `make pages`; nobody writes it.
"""


def number(value):
    return f"{value:.2g}" if isinstance(value, (int, float)) else cell_text(str(value))


def page():
    return generated(
        "The equation ledger", ABOUT, _body(), "No chapter displays a tagged equation yet."
    )


def _body():
    found, measured, caught = equations.displayed(), equations.checks(), equations.mutants()
    keys = sorted(found, key=equations.order)
    kinds = {key: equations.described().get(key, {}).get("kind", "not classified") for key in keys}
    done = [key for key in keys if equations.proven(key, kinds[key], measured, caught)]
    if not keys:
        return []
    lines = [
        f"**{len(keys)} equations, {len(done)} of them proven.**"
        + (
            ""
            if caught is not None
            else " No mutation run is stored yet (`make mutate`), so identities and theorems do not count yet."
        ),
        "",
        "| equation | kind | chapter | checks | bugs caught | proven |",
        "|---|---|---|---|---|---|",
    ]
    for key in keys:
        places = ", ".join(dict.fromkeys(link_to(PAGE, path) for path, _, _ in found[key]))
        bugs = (
            f"at least {len(caught[key])}"
            if caught and caught.get(key)
            else 0
            if key in equations.searched()
            else "–"
        )
        if caught and caught.get(key) and key not in equations.current():
            bugs += ", before the last edit"
        lines.append(
            f"| [{key}](#{slug(key)}) | {kinds[key]} | {places} | {len(measured.get(key, []))} | {bugs} | {'yes' if key in done else 'no'} |"
        )
    last = None
    for key in keys:
        paper = key.split(" ")[0]
        if paper != last:
            about = equations.papers().get(paper)
            lines += ["", f"## {about['title']}" if about else f"## {paper}", ""]
            lines += [f"{{cite:t}}`{about['cite']}`; tags begin with {paper}.", ""] if about else []
            last = paper
        lines += entry(key, kinds[key], found[key], measured.get(key, []), caught)
    return lines


def entry(key, kind, places, measured, caught):
    """One equation: the display, what it says, where it stands, what proves it."""
    lines = [
        f"({slug(key)})=",
        f"### {key}",
        "",
        f"$$\n{places[0][2]}\n$$",
        "",
        f"*{kind.capitalize()}.* {cell_text(equations.described().get(key, {}).get('says', ''))}",
        "",
    ]
    where = "; ".join(dict.fromkeys(link_to(PAGE, path, heading) for path, heading, _ in places))
    lines += [f"Displayed in: {where}.", ""]
    if measured:
        lines += ["| check | measured | bound | in |", "|---|---|---|---|"]
        for path, check in measured:
            lines.append(
                f"| {in_table(check['claim'])} | {number(check['measured'])} | {in_table(check['bound'])} | {link_to(PAGE, path)} |"
            )
        lines.append("")
    else:
        lines += ["No check names this equation yet.", ""]
    if caught is not None and caught.get(key):
        bugs = caught[key]
        lines += [
            f":::{{dropdown}} At least {len(bugs)} injected {'bug makes' if len(bugs) == 1 else 'bugs make'} it fail",
            *(f"- {cell_text(bug)}" for bug in bugs),
            ":::",
            "",
        ]
    return lines


def slug(key):
    return "eq-" + re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
