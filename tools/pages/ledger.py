"""Make book/reference/ledger.md: every displayed equation of a paper, the check that proves it, the bugs that check has caught.

It is made from
  the chapters                     each `\\tag{DDPM 4}` in a display, and the heading that it stands under
  book/_data/equations.yml         kind and meaning of each equation
  book/_data/runs/*.json           what every check measured when its chapter last ran (written by tools.execute)
  book/_data/mutation.json         {"equations": {"DDPM 4": ["ddpm.py, q_sample: dropped sqrt: ...", ...], ...}, ...}: for each equation
                                   mutants of the package that made its check fail, the first of each chapter (tools.mutate)
and never by hand: `make pages` rewrites it, and a test compares.
"""

import json
import re
from collections import defaultdict
from functools import cache

from tools import layout
from tools.mutation import proofs, verdicts
from tools.pages.markdown import cell_text, generated, headings_and_text, in_table, link_to

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
KINDS = ("definition", "identity", "theorem")
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
TAG = re.compile(r"\\tag\{([^{}]+)\}")


def displayed():
    """Every tagged display of the chapters, in reading order: {key: [(chapter path, heading, LaTeX without the tag), ...]}."""
    found = defaultdict(list)
    for path in layout.chapters():
        for heading, text in headings_and_text(path):
            for display in DISPLAY.findall(text):
                for key in TAG.findall(display):
                    found[key].append((path, heading, TAG.sub("", display).strip()))
    return dict(found)


@cache
def _yaml():
    import yaml

    return yaml.safe_load((layout.BOOK / "_data" / "equations.yml").read_text(encoding="utf8"))


def papers():
    return _yaml()["papers"]


def described():
    """{key: {"kind", "says"}} of equations.yml."""
    return _yaml()["equations"]


def checks():
    """Every check that names an equation, from the last run of each chapter: {key: [(chapter path, check), ...]}."""
    found = defaultdict(list)
    for path in layout.chapters():
        if layout.run_file(path).exists():
            for check in json.loads(layout.run_file(path).read_text(encoding="utf8"))["checks"]:
                for key in filter(None, re.split(r"\s*;\s*", check.get("equation") or "")):
                    found[key].append((path, check))
    return dict(found)


def mutants():
    """{key: mutants that made a check of this equation fail}, or None where no mutation run is stored."""
    return verdicts.load()["equations"] or None


@cache
def current():
    """The equations of which a check, as it stands in a chapter today, was made to fail by a bug in a function as it is today."""
    known, found = verdicts.load().get("proofs", {}), set()
    for path in layout.chapters():
        for key in proofs.proven_by(path):
            proof = proofs.of_chapter(path, key)
            if verdicts.still_failing(known.get(f"{proof.chapter}: {key}"), proof.mark):
                found.add(key)
    return found


def searched():
    """The equations for whose checks a bug was searched, in at least one chapter."""
    return {name.partition(": ")[2] for name in verdicts.load().get("proofs", {})}


def proven(key, kind, checks, caught):
    """Whether an equation counts: a definition needs a check, an identity or theorem a check that some bug has failed."""
    return bool(checks.get(key)) and (kind == "definition" or bool(caught and caught.get(key)))


def number(value):
    return f"{value:.2g}" if isinstance(value, (int, float)) else cell_text(str(value))


def order(key):
    """Papers in the order of equations.yml, then equations by number."""
    paper, _, rest = key.partition(" ")
    known = list(papers())
    return (
        known.index(paper) if paper in known else len(known),
        [int(n) for n in re.findall(r"\d+", rest)],
        rest,
    )


def page():
    return generated("The equation ledger", ABOUT, _body(), "No chapter displays a tagged equation yet.")


def _body():
    found, measured, caught = displayed(), checks(), mutants()
    keys = sorted(found, key=order)
    kinds = {key: described().get(key, {}).get("kind", "not classified") for key in keys}
    done = [key for key in keys if proven(key, kinds[key], measured, caught)]
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
        bugs = f"at least {len(caught[key])}" if caught and caught.get(key) else 0 if key in searched() else "–"
        if caught and caught.get(key) and key not in current():
            bugs += ", before the last edit"
        lines.append(
            f"| [{key}](#{slug(key)}) | {kinds[key]} | {places} | {len(measured.get(key, []))} | {bugs} | {'yes' if key in done else 'no'} |"
        )
    last = None
    for key in keys:
        paper = key.split(" ")[0]
        if paper != last:
            about = papers().get(paper)
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
        f"*{kind.capitalize()}.* {cell_text(described().get(key, {}).get('says', ''))}",
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
