"""Make book/reference/symptoms.md: what a person sees when something is wrong, and why.

Gathered from the section of each chapter whose heading begins with "What goes wrong". Each case there is a level-3 heading,
somewhere below it a paragraph that begins `**Symptom.**` and one that begins `**Cause.**`; `**Caught by.**` may follow.
"""

import itertools
import re

from tools import layout
from tools.pages.markdown import generated, headings_and_text, link_to

PAGE = layout.BOOK / "reference" / "symptoms.md"
ABOUT = """
Find what you see in the left column; the right one says why, and links to the place in the book where the bug is switched on, with
its picture, its number and the check that catches it. The page is gathered from the sections *What goes wrong* of the
chapters by `make pages`.
"""
FIELD = re.compile(
    r"^\*\*(Symptom|Cause|Caught by)\.\*\*\s+(.+?)(?=\n\s*\n|\Z|^\*\*(?:Symptom|Cause|Caught by)\.\*\*)",
    re.DOTALL | re.MULTILINE,
)


def cases():
    """[(chapter path, heading path, {"Symptom", "Cause", "Caught by"}), ...]; ValueError for a case that lacks one of the first two."""
    found = []
    for path in layout.chapters():
        for trail, text in headings_and_text(path):
            if len(trail) == 3 and trail[1].lower().startswith("what goes wrong"):
                fields = {name: " ".join(words.split()) for name, words in FIELD.findall(text)}
                missing = {"Symptom", "Cause"} - set(fields)
                if missing:
                    raise ValueError(
                        f"{path.name}: the case {trail[2]!r} has no paragraph that begins with "
                        + " or ".join(f"**{name}.**" for name in sorted(missing))
                    )
                found.append((path, trail, fields))
    return found


def page():
    lines = []
    for path, group in itertools.groupby(cases(), key=lambda case: case[0]):
        lines += [f"## {layout.page_title(path)}", "", "| what you see | why |", "|---|---|"]
        lines += [_row(*case) for case in group]
        lines.append("")
    return generated("Symptom → cause", ABOUT, lines, "No chapter has such a section yet.")


def _row(path, trail, fields):
    caught = f" *Caught by:* {fields['Caught by']}" if "Caught by" in fields else ""
    symptom, cause = (
        text.replace("|", "\\|") for text in (fields["Symptom"], fields["Cause"] + caught)
    )
    return f"| {symptom} | {cause} ({link_to(PAGE, path, trail)}) |"
