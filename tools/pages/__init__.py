"""The reference pages that are generated, one module a page: PAGE is its file, `page()` its text."""

from tools.pages import benchmarks, bugs, imports, ledger, status, symptoms

GENERATED = (ledger, bugs, benchmarks, status, symptoms, imports)


def write_all():
    """Write each generated page whose text has changed; returns those."""
    changed = []
    for maker in GENERATED:
        text = maker.page()
        if not maker.PAGE.exists() or maker.PAGE.read_text(encoding="utf8") != text:
            maker.PAGE.write_text(text, encoding="utf8", newline="\n")
            changed.append(maker.PAGE)
    return changed
