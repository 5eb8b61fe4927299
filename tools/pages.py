"""Rewrite every reference page that is generated: `python -m tools.pages` (`make pages`)."""

import os

from tools import benchmarks, bugs, layout, ledger, status, symptoms

GENERATED = (ledger, bugs, benchmarks, status, symptoms)


def write_all():
    """Write each generated page whose text has changed; returns those."""
    changed = []
    for maker in GENERATED:
        text = maker.page()
        if not maker.PAGE.exists() or maker.PAGE.read_text(encoding="utf8") != text:
            maker.PAGE.write_text(text, encoding="utf8", newline="\n")
            changed.append(maker.PAGE)
    return changed


def main():
    for path in write_all():
        print(f"wrote {os.path.relpath(path, layout.ROOT)}")


if __name__ == "__main__":
    main()
