"""The rule that compares printed outputs: what another processor may change passes, whatever else is different fails."""

import subprocess
import sys
from decimal import Decimal

import nbformat
import pytest

from tools import environment, layout
from tools.outputs import as_stored, bounds_of

STORED = """✓ the loss at t = 400 (within 1e-10)
share:   9.97 %   of 1,497 images
     beta   0.0042 ± 0.0003
shape (3, 28, 28), version 3.10.0
"""


def passes(new, stored=STORED, **bounds):
    return (
        as_stored(new, stored, {name: Decimal(str(bound)) for name, bound in bounds.items()})
        == stored
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.0042", "0.0043"),
        ("0.0003", "0.0002"),
        ("9.97 %", "9.98 %"),
        ("  9.97 %", "  9.98 %"),
        ("1e-10", "9e-11"),
    ],
)
def test_a_last_digit_may_change(old, new):
    assert passes(STORED.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.0042", "0.0044"),  # a wrong number
        ("0.0042", "0.042"),
        ("0.0042", "-0.0042"),  # another sign
        ("0.0042", "nan"),
        ("0.0042", "inf"),
        ("0.0042", ""),
        ("0.0042", "0.0042 0.0042"),
        ("9.97 %", "9.97"),  # another unit
        ("1e-10", "1e-11"),  # another exponent
        ("1e-10", "1e-09"),
        ("1e-10", "1e+10"),
        ("400", "401"),  # whole numbers
        ("1,497", "1,498"),
        ("(3, 28, 28)", "(3, 28, 29)"),
        ("(3, 28, 28)", "(3, 28)"),
        ("(3, 28, 28)", "(28, 28, 3)"),
        ("3.10.0", "3.10.1"),  # no number at all
        ("loss", "gain"),  # a wrong word
        ("✓", "✗"),
        ("the loss", "theloss"),
        ("shape (3, 28, 28), version 3.10.0\n", ""),  # a missing line
        ("share", "\nshare"),  # an extra line
        ("share", "warning\nshare"),
    ],
)
def test_anything_else_is_another_output(old, new):
    assert old in STORED
    assert not passes(STORED.replace(old, new))


@pytest.mark.parametrize(
    ("stored", "new", "same"),
    [
        ("35 %", "36 %", True),  # rounded, for all that it looks whole
        ("35%", "37%", False),
        ("|  9.99|", "| 10.00|", True),  # the column stays filled
        ("9.99  |", "10.00 |", True),
        ("-0.00", "0.00", True),
        ("0.0", "-0.1", True),
        ("0.1", "-0.1", False),
        ("3e-05", "4e-05", True),
        ("3e-05", "5e-05", False),
        ("4", "3.9", True),  # 4.0, printed with {:.2g}
        ("4", "3.8", False),
        ("1e+02", "99", True),
        ("1e+02", "98", False),
        ("0.989969", "0.990067", True),  # LEAST of the value
        ("0.989969", "0.990070", False),
        ("0.3 0.2 0.1", "0.3 0.1 0.1", True),
        ("0.3 0.2 0.1", "0.2 0.3 0.1", True),
        ("0.3 0.2 0.1", "0.1 0.2 0.3", False),
        ("float32", "float33", False),
        ("3x32x32", "3x32x33", False),
        ("[-1.0, 1.0]", "[-1.0, 1.1]", True),
        ("x_0", "x_1", False),
        ("no number", "no  number", False),
    ],
)
def test_numbers_of_many_kinds(stored, new, same):
    assert passes(new, stored) == same


def test_a_cell_may_ask_for_other_bounds():
    assert passes("loss 0.111", "loss 0.105", rtol=0.06)
    assert not passes("loss 0.112", "loss 0.105", rtol=0.06)
    assert passes("loss 0.111", "loss 0.105", atol=0.006)
    assert not passes("loss 0.112", "loss 0.105", atol=0.006)
    assert not passes("9 of 10", "8 of 10", rtol=0.5, atol=5)
    assert passes("9 of 10", "8 of 10", whole=1)
    assert not passes("9 of 10", "7 of 10", whole=1)
    assert not passes("loss nan", "loss 0.105", rtol=10)


def cell_that_asks(**asked):
    return {"metadata": {"book": asked}}


def test_bounds_are_read_from_the_metadata():
    assert bounds_of({"metadata": {}}) == {}
    assert bounds_of(cell_that_asks(rtol=0.05, why="trained here")) == {"rtol": Decimal("0.05")}


@pytest.mark.parametrize(
    "asked",
    [
        {"rtol": 0.1},
        {"rtol": -1, "why": "w"},
        {"rtol": True, "why": "w"},
        {"atol": float("inf"), "why": "w"},
        {"tol": 1, "why": "w"},
    ],
)
def test_bounds_that_are_none_are_refused(asked):
    with pytest.raises(ValueError, match=r"why|unknown|positive"):
        bounds_of(cell_that_asks(**asked))


SOURCE = "from IPython.display import Code; Code('a = {}', language='python')"
CELLS = {  # source: the source whose output is stored, metadata, whether they are the same
    "print('loss 0.112')": ("print('loss 0.111')", {}, True),
    "print('loss 0.115')": ("print('loss 0.111')", {}, False),
    "print('loss 0.116')": (
        "print('loss 0.111')",
        {"book": {"rtol": 0.05, "why": "trained"}},
        True,
    ),
    "print('loss 0.117')": (
        "print('loss 0.111')",
        {"book": {"rtol": 0.05}},
        False,
    ),  # without a reason
    "print('gain 0.111')": ("print('loss 0.111')", {}, False),
    "print('loss nan')": ("print('loss 0.111')", {}, False),
    "0.1 + 1": ("0.2 + 1", {}, True),
    "print('loss 0.1')": ("0.1", {}, False),  # the same text, shown in another way
    SOURCE.format("0.2"): (SOURCE.format("0.1"), {}, False),  # a program has no last digit
    "import sys; print('0.1', file=sys.stderr)": ("print('0.1', file=sys.stderr)", {}, True),
    "print('0.2', file=sys.stderr)": ("print('0.1', file=sys.stderr)", {}, False),
}


def test_pytest_compares_by_the_rule(tmp_path):
    """Plain `pytest --nbval`, with the repository's conftest.py."""
    from nbclient import NotebookClient

    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nb.cells = [
        nbformat.v4.new_code_cell(stored, metadata=metadata)
        for stored, metadata, _ in CELLS.values()
    ]
    nb.cells.insert(0, nbformat.v4.new_code_cell("import sys"))
    NotebookClient(nb, kernel_name="python3").execute()
    for cell, source in zip(nb.cells[1:], CELLS):
        cell.source = source
    nbformat.write(nb, tmp_path / "chapter.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-q",
        "-rA",
        "--nbval",
        str(tmp_path / "chapter.ipynb"),
    ]
    report = subprocess.run(command, cwd=layout.ROOT, capture_output=True, text=True).stdout
    for number, (source, (_, _, same)) in enumerate(CELLS.items(), 1):
        outcome = "PASSED" if same else "FAILED"
        lines = [line for line in report.splitlines() if line.startswith(outcome)]
        assert any(
            f"::Cell {number}" in line + " " and f"::Cell {number}0" not in line for line in lines
        ), f"{source}\n{report}"


def test_the_processor_is_for_the_caller_to_choose(monkeypatch):
    """Two threads, but where OMP_NUM_THREADS says otherwise."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment.kernel_environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    threads = {
        environment.kernel_environment()[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    assert threads == {"4"}
