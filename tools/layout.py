"""Where things are: the table of contents, the chapters, the package."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
RUNS = (
    BOOK / "_data" / "runs"
)  # one JSON file per chapter: when it last ran, what its checks measured
PACKAGE = ROOT / "diffusion_core"


def toc_entries():
    """The pages of `_toc.yml` in reading order: the root, then every `file:` (paths without suffix, relative to ROOT)."""
    import yaml

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))

    def walk(node):
        if isinstance(node, dict):
            if "file" in node:
                yield node["file"]
            for key in ("parts", "chapters", "sections"):
                for child in node.get(key) or []:
                    yield from walk(child)

    return [toc["root"], *walk(toc)]


def page_source(entry):
    """The one source file of a page; ValueError where there is none or more than one."""
    found = [
        ROOT / f"{entry}{suffix}"
        for suffix in (".ipynb", ".md")
        if (ROOT / f"{entry}{suffix}").is_file()
    ]
    if len(found) != 1:
        raise ValueError(
            f"_toc.yml names {entry!r}: expected one of {entry}.ipynb, {entry}.md, found {[p.name for p in found]}"
        )
    return found[0]


def chapters():
    """Every notebook of the table of contents, in reading order."""
    return [path for path in map(page_source, toc_entries()) if path.suffix == ".ipynb"]


def chapter_name(path):
    """How a chapter is called in data files: its path under `book/` without the suffix, `1-intuition/forward-process`."""
    path = Path(path).resolve()
    return (
        path.relative_to(BOOK).with_suffix("").as_posix()
        if path.is_relative_to(BOOK)
        else path.stem
    )


def run_file(path):
    """The file under `book/_data/runs` that keeps what the last run of a chapter measured."""
    return RUNS / f"{chapter_name(path).replace('/', '--')}.json"


def page_title(path):
    """The first level-1 heading of a page."""
    path = Path(path)
    text = path.read_text(encoding="utf8")
    if path.suffix == ".ipynb":
        text = "\n".join(
            "".join(c["source"]) + "\n"
            for c in json.loads(text)["cells"]
            if c["cell_type"] == "markdown"
        )
    return next(line[2:].strip() for line in text.splitlines() if line.startswith("# "))


def modules():
    """Every module of the package that has a public name: `ddpm`, `networks/unet`."""
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in found if not path.name.startswith("_"))


def package_files():
    """The files of the package: source, weights, cards, tables."""
    return sorted(
        p
        for p in PACKAGE.rglob("*")
        if p.is_file()
        and "__pycache__" not in p.parts
        and not p.name.startswith(".")
        and p.suffix not in {".new", ".tmp"}  # half written
    )
