"""Change the repository's address everywhere: `python -m tools.address https://github.com/OWNER/NAME` (`make address URL=…`).

The address is written by hand in one place, `repository.url` of _config.yml. This command takes the old one from there and
rewrites it in every text file: links to the repository, Colab links, the install line in each chapter's first cell, and the
address of the published site. Without an argument it lists where the address stands. Chapters whose outputs were current
stay current.
"""

import argparse
import re
import subprocess
import sys

import nbformat

from tools import layout, stale

TEXT = {
    ".cff",
    ".css",
    ".html",
    ".ipynb",
    ".json",
    ".md",
    ".py",
    ".svg",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    "",
}
SKIPPED = {".git", ".venv", "_build", "build", "dist", "data", "runs", "__pycache__"}
URL = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)(?:\.git)?/?")


def parts(url):
    """(owner, name) of a GitHub address; ValueError for anything else."""
    match = URL.fullmatch(url)
    if not match:
        raise ValueError(
            f"URL = {url!r} should look like https://github.com/OWNER/NAME (Colab opens notebooks from GitHub only)"
        )
    return match.groups()


def spellings(url):
    """The ways in which one address is written: of the repository, of Colab's links to it, of the published site."""
    owner, name = parts(url)
    return [
        f"github.com/{owner}/{name}",
        f"colab.research.google.com/github/{owner}/{name}",
        f"{owner.lower()}.github.io/{name}",
    ]


def text_files(root=None):
    """Every text file of the project: those that git would carry, or all where there is no git."""
    root = root or layout.ROOT
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [root / line for line in listed.stdout.splitlines()]
    else:
        paths = [p for p in root.rglob("*") if not SKIPPED & set(p.relative_to(root).parts[:-1])]
    return sorted(p for p in paths if p.is_file() and p.suffix in TEXT)


def places(url, root=None):
    """Where an address stands: [(path, line number), ...]."""
    words = spellings(url)
    found = []
    for path in text_files(root):
        lines = path.read_text(encoding="utf8", errors="replace").splitlines()
        found += [
            (path, number)
            for number, line in enumerate(lines, 1)
            if any(word in line for word in words)
        ]
    return found


def rewrite(old, new):
    """Replace every spelling of the old address by the new one's; returns the files changed."""
    current = current_chapters()
    changed = []
    for path in sorted({path for path, _ in places(old)}):
        text = path.read_bytes().decode("utf8")
        for was, now in zip(spellings(old), spellings(new), strict=True):
            text = text.replace(was, now)
        path.write_bytes(text.encode("utf8"))
        changed.append(path)
    stamp(current)
    return changed


def current_chapters():
    """The chapters whose stored outputs are current."""
    digests = stale.package_digests()
    return [
        path
        for path in layout.chapters()
        if not stale.reasons(nbformat.read(path, as_version=4), digests)
    ]


def stamp(paths):
    """Say of chapters that their outputs belong to the code cells and the package as they are now."""
    digests = stale.package_digests()
    for path in paths:
        nb = nbformat.read(path, as_version=4)
        nb.metadata["book"] = stale.record(nb, nb.metadata["book"]["reached"], digests)
        path.write_text(nbformat.writes(nb) + "\n", encoding="utf8", newline="\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", help="the new address, https://github.com/OWNER/NAME")
    options = parser.parse_args()
    old = layout.config()["repository"]["url"]
    if not options.url:
        for path, number in places(old):
            print(f"{path.relative_to(layout.ROOT)}:{number}")
        return
    try:
        parts(options.url)
    except ValueError as error:
        sys.exit(str(error))
    changed = rewrite(old, options.url.removesuffix("/").removesuffix(".git"))
    print(f"{old} is now {options.url} in {len(changed)} files")


if __name__ == "__main__":
    main()
