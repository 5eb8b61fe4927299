"""What is known of the equations: where a chapter displays one, what it is, which checks prove it, which bugs have failed them.

It is read from
  the chapters                     each `\\tag{DDPM 4}` in a display, and the heading that it stands under
  book/_data/equations.yml         kind and meaning of each equation
  book/_data/runs/*.json           what every check measured when its chapter last ran (written by tools.execute)
  book/_data/mutation.json         {"equations": {"DDPM 4": ["ddpm.py, q_sample: dropped sqrt: ...", ...], ...}, ...}: for each equation
                                   mutants of the package that made its check fail, the first of each chapter (tools.mutate)
"""

import json
import re
from collections import defaultdict
from functools import cache

from tools import layout
from tools.mutation import proofs, verdicts
from tools.pages.markdown import headings_and_text

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


def order(key):
    """Papers in the order of equations.yml, then equations by number."""
    paper, _, rest = key.partition(" ")
    known = list(papers())
    return (
        known.index(paper) if paper in known else len(known),
        [int(n) for n in re.findall(r"\d+", rest)],
        rest,
    )
