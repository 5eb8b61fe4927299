"""Make book/reference/bugs.md: what the injected bugs showed. From book/_data/mutation.json, never by hand."""

from tools import layout
from tools.mutation import verdicts
from tools.pages.markdown import cell_text, generated

PAGE = layout.BOOK / "reference" / "bugs.md"
ABOUT = """
A test that cannot fail proves nothing. `make mutate` therefore puts bugs into the package, one at a time and mechanically:
a sign turned, an index moved by one, a root, square, term or factor dropped, two arguments swapped, a comparison changed,
a statement left out. For each of them the tests of that module run. A bug is *caught* if one of them fails, or does not end.
A few bugs change nothing that anybody could observe; they are listed with the reason, and do not count.
The [ledger](ledger.md) lists bugs that make the checks of an equation fail.
"""


def page():
    found = {
        module: verdicts.summary(module, entry)
        for module, entry in verdicts.load()["modules"].items()
    }
    return generated(
        "Injected bugs", ABOUT, _tables(found) if found else [], "No run is stored yet."
    )


def _tables(found):
    lines = [
        "| module | bugs | caught | share | not observable | up to date |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        _row(f"[`{_dotted(module)}`](api/{module.split('/')[0]}.md)", [one])
        for module, one in found.items()
    ]
    lines += [_row("all", list(found.values())), ""]
    for module, one in found.items():
        lines += _named(f"{_dotted(module)}: not caught", dict.fromkeys(one.survived, ""))
        lines += _named(f"{_dotted(module)}: not observable", one.equivalent)
    return lines


def _dotted(module):
    return module.replace("/", ".")


def _row(name, summaries):
    counted, caught = sum(s.counted for s in summaries), sum(len(s.caught) for s in summaries)
    hidden, current = sum(len(s.equivalent) for s in summaries), all(s.current for s in summaries)
    return f"| {name} | {counted} | {caught} | {caught / counted:.1%} | {hidden} | {'yes' if current else 'no'} |"


def _named(title, mutants):
    """Mutants under a heading, each with its reason, where one is known."""
    if not mutants:
        return []
    lines = [f":::{{dropdown}} {title} ({len(mutants)})"]
    for name, reason in mutants.items():
        where, _, what = name.partition(": ")
        lines.append(
            f"- {cell_text(where)}: {cell_text(what)}"
            + (f" — {cell_text(reason)}" if reason else "")
        )
    return [*lines, ":::", ""]
