"""What chapters and package need from where they run: declared packages only, and nothing that warns where there are no widgets."""

import ast
import json
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tools import layout
from tools.execute import clean
from tools.outputs import bounds_of

IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}
GIVEN = {"diffusion_core", "IPython"}  # the book's package, and the kernel's own
each_chapter = pytest.mark.parametrize("path", layout.chapters(), ids=layout.chapter_name)


def declared(*files):
    """The names under which the packages of requirements files are imported."""
    lines = "\n".join((layout.ROOT / name).read_text(encoding="utf8") for name in files)
    names = re.findall(r"^[\w-]+", lines, re.MULTILINE)
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def imported(path):
    """The top-level modules that a notebook's cells import."""
    for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
        source = re.sub(r"(?m)^( *)%.*", r"\1pass", "".join(cell["source"]))
        for node in ast.walk(ast.parse(source)) if cell["cell_type"] == "code" else ():
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


@each_chapter
def test_a_chapter_imports_what_the_requirements_name(path):
    """What another package happens to bring may leave with it, or break."""
    allowed = (
        declared("requirements.txt", "requirements-compare.txt", "requirements-text-to-image.txt")
        | GIVEN
        | sys.stdlib_module_names
    )
    assert set(imported(path)) <= allowed


@each_chapter
def test_a_cell_that_asks_for_bounds_says_why(path):
    for cell in nbformat.read(path, as_version=4).cells:
        bounds_of(cell)


def test_execution_keeps_the_bounds_of_a_cell():
    book = {"rtol": 0.05, "why": "a network is trained here"}
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1", metadata={"book": book, "trusted": True})]
    )
    clean(nb)
    assert nb.cells[0].metadata == {"book": book}


def test_no_progress_bar_of_ours_asks_for_widgets():
    """tqdm.auto warns in every notebook without ipywidgets; tqdm never does."""
    imported = re.compile(
        r'^[\s">]*(?:import|from) .*(?:tqdm\.(?:auto|notebook|autonotebook)|tqdm_notebook)\b',
        re.MULTILINE,
    )
    folders = ("diffusion_core", "book", "tools", "benchmarks")
    sources = [path for folder in folders for path in (layout.ROOT / folder).rglob("*")]
    sources = [path for path in sources if path.suffix in {".py", ".ipynb", ".md"}]
    assert [p for p in sources if imported.search(p.read_text(encoding="utf8"))] == []


@pytest.mark.parametrize(
    "module",
    ["diffusion_core.training", "diffusion_core.pretrained", "diffusion_core.cli", "tqdm.auto"],
)
def test_nothing_warns_in_a_notebook(monkeypatch, module):
    """Neither the package nor what diffusers imports: requirements-compare.txt has the widgets."""
    for name in ("PYTHONWARNINGS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"import {module}")])
    NotebookClient(nb, kernel_name="python3").execute()
    assert nb.cells[0].outputs == []


def test_the_tests_run_on_every_kind_of_machine():
    """x64 and Arm; Linux, macOS and Windows; from the oldest Python that is promised on."""
    import yaml

    jobs = yaml.safe_load((layout.ROOT / ".github/workflows/test.yml").read_text(encoding="utf8"))[
        "jobs"
    ]
    systems = {jobs["test"]["runs-on"], *jobs["elsewhere"]["strategy"]["matrix"]["system"]}
    assert all(
        any(part in system for system in systems)
        for part in ("ubuntu-latest", "arm", "macos", "windows")
    )
    assert {"3.11", "3.12", "3.13"} <= set(jobs["test"]["strategy"]["matrix"]["python"])
    assert jobs["elsewhere"]["steps"][-1]["run"] == "python -m tools.verify"
