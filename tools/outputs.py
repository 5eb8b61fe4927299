"""When is a printed output the stored one? The one rule by which a chapter that runs again is compared with its stored outputs.

Words are compared exactly, line by line; numbers within what another processor, or another number of threads, may change:

- A whole number (400, 2,867,841, the 3, 28, 28 of a shape) is exact, and so is whatever hangs on a letter or has two dots
  (float32, 3x32x32, 3.10.0).
- Any other number (97.3, 0.0042, 1e-10, 35 %) may differ by one unit of its last digit, or by LEAST of its value where that is
  more. The unit is the finer one of the two numbers: 9e-11 stands beside 1e-10, and 1e-11 does not.
- Blanks beside a number may differ: they fill the column.

A cell whose numbers depend on more than rounding (a network is trained in it, or images are painted) says in its metadata how far
they may go, and why: {"book": {"rtol": 0.05, "why": "a network is trained here"}}. `rtol` is a part of the value, `atol` a
distance, `whole` a distance for whole numbers.
"""

import re
from decimal import Decimal

LEAST = Decimal(
    "1e-4"
)  # of the value: what is left of the seven digits of float32 after a chapter's arithmetic
BOUNDS = ("rtol", "atol", "whole")
NUMBER = re.compile(
    r"""(?<![\w.]) [-+]?  (?: \d{1,3}(?:,\d{3})+ | \d+ )  (?: \.\d+ )?  (?: e[-+]?\d+ )?
        (?! [\d_] | \.\d )""",
    re.VERBOSE,
)


def bounds_of(cell):
    """The bounds that a cell's metadata asks for; ValueError for another key, a bound that is none, or no reason."""
    asked = dict(cell.get("metadata", {}).get("book", {}))
    if asked and not asked.pop("why", ""):
        raise ValueError("a cell that asks for bounds says why")
    if unknown := asked.keys() - set(BOUNDS):
        raise ValueError(f"unknown: {sorted(unknown)}; known: {BOUNDS}")
    for name, bound in asked.items():
        if (
            isinstance(bound, bool)
            or not isinstance(bound, (int, float))
            or not 0 < bound < float("inf")
        ):
            raise ValueError(f"{name} = {bound!r} must be a positive number")
    return {name: Decimal(str(bound)) for name, bound in asked.items()}


def _value(number):
    return Decimal(number.replace(",", ""))


def _is_whole(number):
    return number.lstrip("+-").replace(",", "").isdigit()


def _unit(number):
    """One unit of the last digit that is printed."""
    return Decimal(1).scaleb(_value(number).as_tuple().exponent)


def same(new, stored, after="", rtol=Decimal(0), atol=Decimal(0), whole=Decimal(0)):
    """Whether two printed numbers are one, with the text `after` them: a percentage is no whole number."""
    apart = abs(_value(new) - _value(stored))
    if _is_whole(new) and _is_whole(stored) and not after.lstrip(" ").startswith("%"):
        return apart <= whole
    unit = min(_unit(new), _unit(stored))
    return apart <= max(unit, atol, max(rtol, LEAST) * abs(_value(stored)))


def _line_as_stored(new, stored, bounds):
    """`new` with the stored one's blanks and numbers, wherever the rule calls them the same."""
    numbers, stored_numbers = NUMBER.findall(new), NUMBER.findall(stored)
    words, stored_words = NUMBER.split(new), NUMBER.split(stored)
    if not numbers or [w.strip(" ") for w in words] != [w.strip(" ") for w in stored_words]:
        return new
    line = stored_words[0]
    for number, old, after in zip(numbers, stored_numbers, stored_words[1:], strict=True):
        line += (old if same(number, old, after, **bounds) else number) + after
    return line


def as_stored(new, stored, bounds=None):
    """A new output as it would read on the machine that stored it: what still differs then, is another output."""
    lines, stored_lines = new.split("\n"), stored.split("\n")
    if len(lines) != len(stored_lines):
        return new
    return "\n".join(
        _line_as_stored(*pair, bounds or {}) for pair in zip(lines, stored_lines, strict=True)
    )


def _texts(outputs):
    """What was printed, and what was shown as plain text, in order: [(dictionary, key), ...] of each. HTML and LaTeX are compared
    as they are."""
    printed = [(output, "text") for output in outputs if output.get("name") == "stdout"]
    shown = [
        (output["data"], "text/plain")
        for output in outputs
        if "text/plain" in output.get("data", {})
    ]
    return printed, shown


def settle(outputs, stored, bounds=None):
    """Rewrite new outputs, as nbval has them, so that an exact comparison with the stored ones finds what the rule finds."""
    for new_texts, stored_texts in zip(_texts(outputs), _texts(stored), strict=True):
        for (new, key), (old, _) in zip(new_texts, stored_texts):
            new[key] = as_stored(new[key], old[key], bounds)


def compare_by_the_rule(item):
    """Make one of nbval's items, a cell, compare its outputs by this rule."""
    exactly = item.compare_outputs

    def compare(test, ref, *rest):
        settle(test, ref, bounds_of(item.cell))
        return exactly(test, ref, *rest)

    item.compare_outputs = compare
