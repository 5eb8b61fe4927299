"""The cells that prove equations: which they are, that each runs alone, and what their checks find."""

import json
import os

import pytest

from tools import layout
from tools.mutation import proofs
from tools.mutation.process import in_process


def chapter(tmp_path, *cells):
    """A notebook of these code cells; a cell that begins with `# given` has that tag."""
    found = [
        {
            "cell_type": "code",
            "source": c,
            "metadata": {"tags": ["given"] * c.startswith("# given")},
        }
        for c in cells
    ]
    path = tmp_path / "chapter.ipynb"
    path.write_text(json.dumps({"cells": found}), encoding="utf8")
    return path


CHECK = "from diffusion_core.checks import check"


def test_a_proof_is_the_cells_that_name_its_equation_and_what_is_given_before(tmp_path):
    given, other, late = f"# given\n{CHECK}\na = 1", "b = 1 / 0", "# given\nc = 1 / 0"
    four = "check('a', a - 1, within=0, equation='DDPM 4; DDPM 7')".replace("'", '"')
    two = "check('a', a - 3, within=0, equation='DDPM 2')".replace("'", '"')
    path = chapter(tmp_path, given, other, four, two, late)
    assert proofs.proven_by(path) == ["DDPM 4", "DDPM 7", "DDPM 2"]
    assert proofs.of_chapter(path, "DDPM 7").cells == [given, four]
    assert proofs.of_chapter(path, "DDPM 2").cells == [given, two]
    assert proofs.of_chapter(path).cells == [given, four, two]
    found = proofs.of_chapter(path).run()
    assert (found.failed, found.held) == ({"DDPM 2": ["a"]}, {"DDPM 4", "DDPM 7"})


def test_the_mark_of_a_proof_is_that_of_its_code_without_comments(tmp_path):
    def mark(given, check='check("a", a, within=4, equation="DDPM 4")'):
        return proofs.of_chapter(chapter(tmp_path, given, check), "DDPM 4").mark

    assert mark("# given\na = 3") == mark("# given\na = (3)  # the ratio")
    assert mark("# given\na = 3") != mark("# given\na = 4")


def test_lines_of_ipython_are_left_out(tmp_path):
    path = chapter(
        tmp_path,
        f"# given\n{CHECK}\nif True:\n    %pip install this",
        'check("a", 0, within=0, equation="DDPM 4")',
    )
    assert proofs.of_chapter(path).run().held == {"DDPM 4"}


def test_a_check_that_is_shown_to_fail_is_no_failure_and_others_do_not_stop_their_cell(tmp_path):
    caught = "import contextlib\n@contextlib.contextmanager\ndef caught():\n    raise RuntimeError"
    cell = "check('plain', 1, within=0)\nwith caught():\n    check('shown', 1, within=0)\ncheck('a', 1, within=0, equation=\"DDPM 4\")"
    path = chapter(tmp_path, f"# given\n{CHECK}\n{caught}", cell)
    assert proofs.of_chapter(path).run().failed == {"DDPM 4": ["a"]}


def test_a_cell_that_raises_fails_its_equations(tmp_path):
    path = chapter(
        tmp_path, f"# given\n{CHECK}", '1 / 0\ncheck("a", 0, within=0, equation="DDPM 4")'
    )
    (claim,) = proofs.of_chapter(path).run().failed["DDPM 4"]
    assert claim == f"{proofs.RAISED}: ZeroDivisionError('division by zero')"


@pytest.mark.parametrize(
    "path", [p for p in layout.chapters() if proofs.proven_by(p)], ids=layout.chapter_name
)
def test_every_cell_that_proves_an_equation_runs_alone(path):
    """After what is given, without any other cell."""
    troubles = in_process(prove_each_alone, path)
    assert troubles == [], "tag the cells that set what is missing `given`: " + "\n".join(
        troubles or ["they take too long"]
    )


def prove_each_alone(path, answer):
    """In a process of its own: run what is given; at each cell that proves, fork, so that it leaves nothing to the next one."""
    import torch

    os.environ["MPLBACKEND"] = "Agg"
    torch.set_num_threads(1)
    run, troubles = proofs.Run(), []
    with run:
        for source, tags in proofs.code(path):
            if keys := set(proofs.equations(source)):
                failed, held = in_process(_one_more, run, source) or (
                    {"the cell": ["takes too long"]},
                    keys,
                )
                if failed or not keys <= held:
                    troubles.append(f"{source.splitlines()[0]} … {failed or sorted(keys - held)}")
            if "given" in tags:
                run.cell(source)
    answer.put(troubles)


def _one_more(run, source, answer):
    run.cell(source)
    answer.put((run.failed, run.held))
