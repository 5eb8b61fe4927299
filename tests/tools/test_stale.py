"""A change re-runs the chapters that can reach it, and only those: what is recorded, what is compared, what is said."""

import copy
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from tools import execute, layout, opened, stale

PACKAGE = {
    "schedules.py": "1",
    "ddpm.py": "2",
    "networks/classifier.py": "3",
    "weights/mnist.safetensors": "4",
}
REACHED = {
    "forward-process": ["schedules.py", "ddpm.py"],
    "sampling": ["schedules.py", "ddpm.py", "networks/classifier.py", "weights/mnist.safetensors"],
    "unet": ["schedules.py", "weights/mnist.safetensors"],
}


def notebook(*code):
    cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, code)]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def chapters():
    """{name: a notebook whose outputs are current where package_digests() gives PACKAGE}"""
    found = {name: notebook(f"print('{name}')") for name in REACHED}
    for name, nb in found.items():
        nb.metadata["book"] = stale.record(nb, REACHED[name], PACKAGE)
    return found


def out_of_date(chapters, digests):
    return {name for name, nb in chapters.items() if stale.reasons(nb, digests)}


# --- what is compared ---


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("schedules.py", {"forward-process", "sampling", "unet"}),
        ("networks/classifier.py", {"sampling"}),
        ("weights/mnist.safetensors", {"sampling", "unet"}),
        ("cli/train.py", set()),
    ],
)
def test_a_change_makes_stale_what_reached_it(chapters, file, expected):
    assert out_of_date(chapters, PACKAGE) == set()
    assert out_of_date(chapters, {**PACKAGE, file: "new"}) == expected


def test_a_file_that_is_gone_makes_stale_what_reached_it(chapters):
    left = {file: was for file, was in PACKAGE.items() if file != "ddpm.py"}
    assert out_of_date(chapters, left) == {"forward-process", "sampling"}
    assert stale.reasons(chapters["sampling"], left) == ["ddpm.py is gone"]


def test_a_changed_code_cell_makes_its_chapter_stale(chapters):
    chapters["unet"].cells[1].source += "  # changed"
    assert out_of_date(chapters, PACKAGE) == {"unet"}
    assert stale.reasons(chapters["unet"], PACKAGE) == ["its code cells changed"]


def test_prose_may_change(chapters):
    chapters["unet"].cells[0].source = "# Another title"
    assert out_of_date(chapters, PACKAGE) == set()


def test_every_reason_is_said(chapters):
    chapters["sampling"].cells[1].source = "1"
    now = {**PACKAGE, "schedules.py": "new", "ddpm.py": "new"}
    assert stale.reasons(chapters["sampling"], now) == [
        "its code cells changed",
        "ddpm.py changed",
        "schedules.py changed",
    ]


@pytest.mark.parametrize("metadata", [{}, {"book": {"hash": "a29c2f"}}, {"book": {"reached": {}}}])
def test_without_a_record_a_chapter_is_stale(metadata):
    nb = notebook("1")
    nb.metadata.update(copy.deepcopy(metadata))
    assert stale.reasons(nb, PACKAGE) == ["what its last run reached is not stored"]


# --- the files themselves ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the real one."""
    root = tmp_path / "diffusion_core"
    for name in ("schedules.py", "networks/unet.py", "weights/a.safetensors", "tables/b.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1\n2\n")
    monkeypatch.setattr(layout, "PACKAGE", root)
    return root


def test_each_file_has_its_digest_at_any_depth(package):
    (package / "networks" / "__pycache__").mkdir()
    (package / "networks" / "__pycache__" / "unet.cpython-311.pyc").touch()
    (package / "tables" / "b.json.tmp").touch()
    before = stale.package_digests()
    assert set(before) == {
        "schedules.py", "networks/unet.py", "weights/a.safetensors", "tables/b.json"
    }  # fmt: skip
    (package / "networks" / "unet.py").write_bytes(b"1\n3\n")
    now = stale.package_digests()
    assert {file for file in now if now[file] != before[file]} == {"networks/unet.py"}


def test_line_ends_make_no_difference_in_text(package):
    before = stale.package_digests()
    for file in before:
        (package / file).write_bytes(b"1\r\n2\r\n")
    now = stale.package_digests()
    assert {file for file in now if now[file] != before[file]} == {"weights/a.safetensors"}


def test_the_command_says_which_chapters_are_stale_and_why(package, tmp_path, capsys):
    paths = [tmp_path / "current.ipynb", tmp_path / "stale.ipynb"]
    for path in paths:
        nb = notebook("1")
        nb.metadata["book"] = stale.record(nb, ["schedules.py"], stale.package_digests())
        if path.stem == "stale":
            nb.metadata["book"]["reached"]["schedules.py"] = "another"
        nbformat.write(nb, path)
    assert execute.stale_chapters(paths) == [paths[1]]
    said = capsys.readouterr().out
    assert re.fullmatch(r"\S*stale\.ipynb is stale: schedules\.py changed\n", said)


# --- what a kernel opens ---

CELLS = (
    "import sys\nprint(sorted(n for n in globals() if n in {'tools', 'opened', 'safetensors', 'layout'}))",
    "from pathlib import Path\nfrom diffusion_core.schedules import timesteps",
    "def late():\n    from diffusion_core import exact",
    "late()",
    "package = Path(sys.modules['diffusion_core'].__file__).parent\n"
    "from safetensors import safe_open\n"
    "with safe_open(package / 'weights' / 'mnist_classifier.safetensors', framework='pt') as file:\n"
    "    print(len(list(file.keys())) > 0)",
    "with open(package / 'tables' / 'precision.json') as file:\n    print(len(file.read()) > 0)",
    "print(sorted(p.relative_to(package).as_posix() for n, m in sys.modules.items()\n"
    "    if n.startswith('diffusion_core') and (p := Path(m.__file__))))",
)


def test_a_run_records_what_its_kernel_opened(tmp_path):
    path = tmp_path / "tiny.ipynb"
    nbformat.write(notebook(*CELLS), path)
    execute.run(path)
    nb = nbformat.read(path, as_version=4)
    *first, imported = [cell for cell in nb.cells if cell.cell_type == "code"]
    imported = set(json.loads(imported.outputs[0].text.replace("'", '"')))
    assert {"__init__.py", "schedules.py", "exact.py"} <= imported, "imported late is imported too"
    assert nb.metadata["book"]["reached"].keys() == imported | {
        "tables/precision.json",
        "weights/mnist_classifier.safetensors",  # opened in Rust
    }
    assert [cell.execution_count for cell in first] == [1, 2, 3, 4, 5, 6], "not counted as a cell"
    assert first[0].outputs[0].text == "[]\n", "a chapter sees no name of the recorder"
    assert [kept.outputs[0].text for kept in first[4:6]] == ["True\n", "True\n"]
    digests = stale.package_digests()
    assert stale.reasons(nb, digests) == []
    assert stale.reasons(nb, {**digests, "exact.py": "new"}) == ["exact.py changed"]
    assert stale.reasons(nb, {**digests, "classifier.py": "new"}) == []


def test_what_changes_while_a_chapter_runs_makes_it_stale(tmp_path, monkeypatch):
    digests = stale.package_digests()
    monkeypatch.setattr(stale, "package_digests", lambda: {**digests, "schedules.py": "before"})
    path = tmp_path / "tiny.ipynb"
    nbformat.write(notebook("from diffusion_core import schedules\nprint(1)"), path)
    execute.run(path)
    assert stale.reasons(nbformat.read(path, as_version=4), digests) == ["schedules.py changed"]


@pytest.mark.parametrize("prefix", ["", "elsewhere"])
def test_compiled_modules_count_as_their_source(tmp_path, prefix):
    """Wherever Python keeps what it compiled; a process's second import reads that instead of the source."""
    env = {
        **os.environ,
        "PYTHONPATH": str(layout.ROOT),
        "PYTHONPYCACHEPREFIX": str(tmp_path / prefix) if prefix else "",
        "DIFFUSION_OPENED": str(tmp_path / "opened.txt"),
    }
    for _ in range(2):
        (tmp_path / "opened.txt").write_text("")
        command = [sys.executable, "-c", "import tools.opened, diffusion_core.schedules"]
        subprocess.run(command, env=env, cwd=tmp_path, check=True)
        found = (tmp_path / "opened.txt").read_text(encoding="utf8").splitlines()
        assert "schedules.py" in found and len(found) == len(set(found))
        assert all(file.endswith(".py") for file in found)


@pytest.mark.parametrize("name", [3, None, b"schedules.py", "/", "relative.pyc", ""])
def test_whatever_is_opened_the_recorder_lets_it_pass(tmp_path, name):
    recorder = opened.Recorder(tmp_path / "log")
    recorder("open", (name, "r", 0))
    recorder("import", ("diffusion_core", None))
    assert not (tmp_path / "log").exists()
