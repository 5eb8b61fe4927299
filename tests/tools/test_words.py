"""What the files promise: no loose words, every command described, nothing that ruff finds."""

import re
import subprocess
import sys

from tests.tools.files import text_files
from tools import layout


def test_the_text_keeps_its_promises():
    """No hand-waving, nothing left to do, nothing that only exists on one machine."""
    forbidden = re.compile(
        r"it can be shown|it is easy to see|[Oo]bviously|[Tt]rivially|needless to say|\bTODO\b|\bFIXME\b|/root/|/home/\w|(?<![\w.])/work/|\.\./shared"
    )
    kinds = {".md", ".ipynb", ".py", ".yml", ".toml", ".cff"}
    for path, text in text_files().items():
        if path.suffix in kinds and path.name != "test_words.py":
            for number, line in enumerate(text.splitlines(), 1):
                match = None if '"image/' in line else forbidden.search(line)
                assert not match, f"{path.relative_to(layout.ROOT)}:{number}: {match.group()!r}"


def test_make_help_names_every_target():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split()
    for target in set(phony) - {"clean", "help"}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), (
            f"{target} has no description"
        )
    for module in re.findall(r"-m (tools\.\w+)", makefile):
        place = layout.ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), (
            f"the Makefile runs {module}"
        )


def test_the_readme_says_every_command_without_make():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    readme = (layout.ROOT / "README.md").read_text(encoding="utf8")
    said = {
        name: without
        for name, without in re.findall(r"^\| `make (\w+)[^`]*` \| (.+?) \| ", readme, re.MULTILINE)
    }
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split()
    assert set(said) == set(phony) - {"help"}
    recipes = {
        name: body
        for name, body in re.findall(r"^(\w+):.*##.*\n((?:\t.+\n?)*)", makefile, re.MULTILINE)
    }
    for name, without in said.items():
        recipe = recipes[name].replace("$(BOOK)", "$(PY) -m tools.book").replace("$(PORT)", "8000")
        modules = re.findall(r"\$\(PY\) (-m [\w.]+)", recipe)
        assert re.findall(r"python (-m [\w.]+)", without) == modules, f"make {name}"


def test_ruff_finds_nothing():
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        cwd=layout.ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:]
