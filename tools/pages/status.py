"""Make book/reference/status.md: when and with what each chapter last ran. From book/_data/runs, never by hand."""

import json

from tools import layout
from tools.pages.markdown import generated, link_to

PAGE = layout.BOOK / "reference" / "status.md"
ABOUT = """
Each chapter was run from top to bottom by `make execute`; the outputs on its page are those of that run, and `make test`
runs it again and compares. The times are wall-clock seconds without a GPU, starting the kernel included.
The [benchmarks](benchmarks.md) say how long training and sampling take beside other libraries.
"""


def runs():
    """The stored run of every chapter, in reading order: [(path, record or None), ...]."""
    return [
        (
            path,
            json.loads(layout.run_file(path).read_text(encoding="utf8"))
            if layout.run_file(path).exists()
            else None,
        )
        for path in layout.chapters()
    ]


def page():
    found = runs()
    done = [record for _, record in found if record]
    return generated(
        "Status", ABOUT, _tables(found, done) if done else [], "No chapter has been run yet."
    )


def _tables(found, done):
    lines = [
        "| chapter | seconds | CPU cores | checks | Python | PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for path, record in found:
        if record:
            torch = record["versions"].get("torch", "–")
            lines.append(
                f"| {link_to(PAGE, path)} | {record['seconds']:.0f} | {record['cores']} | {len(record['checks'])} | {record['python']} | {torch} |"
            )
        else:
            lines.append(f"| {link_to(PAGE, path)} | not run | | | | |")
    total = sum(record["seconds"] for record in done)
    versions = sorted(
        {(name, number) for record in done for name, number in record["versions"].items()}
    )
    systems = sorted({record["system"] for record in done})
    return [
        *lines,
        "",
        f"{len(done)} chapters, {total:.0f} s together, {total / len(done):.0f} s on average; "
        f"{sum(len(record['checks']) for record in done)} checks, all of them within their bounds.",
        "",
        "## Versions",
        "",
        "The libraries that these runs imported or could have imported.",
        "",
        "| library | version |",
        "|---|---|",
        *(f"| {name} | {number} |" for name, number in versions),
        "",
        f"These versions are those of `constraints.txt`, which `make test` installs. {'Systems' if len(systems) > 1 else 'System'}: {', '.join(systems)}.",
    ]
