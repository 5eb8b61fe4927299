"""A chapter alone: an empty folder, the installed package and no other."""

import sys

import nbformat
import pytest

from tools import alone

EMPTY = "import os\nassert [name for name in os.listdir() if name[0] != '.'] == [NAME]"


@pytest.fixture
def site(tmp_path):
    """A folder with a package of the book's name."""
    package = tmp_path / "site" / "diffusion_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf8")
    return tmp_path / "site"


def notebook(folder, name, source):
    """A notebook of one cell, whose stored output is not that of a run."""
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="from another machine\n")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), folder / name)
    return folder / name


def test_a_chapter_runs_in_an_empty_folder(tmp_path, site):
    source = EMPTY.replace("NAME", "'good.ipynb'")
    path = notebook(site, "good.ipynb", f"{source}\nprint('from here')")
    assert alone.run_alone(path, tmp_path, sys.executable, site) == 0


def test_a_chapter_that_needs_a_file_fails(tmp_path, site):
    path = notebook(site, "bad.ipynb", "open('neighbour.ipynb')")
    assert alone.run_alone(path, tmp_path, sys.executable, site) != 0


def test_the_working_tree_is_out_of_reach(tmp_path, site):
    (tmp_path / "elsewhere").mkdir()
    path = notebook(site, "good.ipynb", "1")
    with pytest.raises(AssertionError, match="not the one imported"):
        alone.run_alone(path, tmp_path / "elsewhere", sys.executable, site)
