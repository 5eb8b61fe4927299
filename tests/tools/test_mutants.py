"""The bugs that `make mutate` puts in: that they are the ones meant, and that each is one small change."""

import ast
import json

import pytest
import yaml

from tools import bugs, layout, mutate, names, slices, verdicts
from tools.mutants import mutants
from tools.syntax import syntax

SOURCE = '''
def step(x_t, t, s, noise=0.5):
    """Docstrings stay: 1 - 2."""
    if s >= t:
        raise ValueError(f"s = {s + 1}")
    alpha = (1 - t).sqrt() ** 2
    check(s)
    return f(x_t, t) * alpha + noise
'''


def test_every_kind_of_bug_is_made():
    found = {m.what for m in mutants("toy", SOURCE)}
    for what in (
        "sign: 1 - t -> 1 + t in `alpha = (1 - t).sqrt() ** 2`",
        "dropped sqrt: (1 - t).sqrt() -> 1 - t",
        "dropped power: (1 - t).sqrt() ** 2 -> (1 - t).sqrt()",
        "off by one: 2 -> 3 in `alpha = (1 - t).sqrt() ** 2`",
        "comparison: s >= t -> s > t in `if s >= t:`",
        "swapped arguments: f(x_t, t) -> f(t, x_t) in `return f(x_t, t) * alpha + noise`",
        "swapped name: t -> s in `return f(x_t, t) * alpha + noise`",
        "dropped term: f(x_t, t) * alpha + noise -> noise",
        "dropped statement: check(s) -> (nothing) in `check(s)`",
        "other constant: 0.5 -> 0.75 in `def step(x_t, t, s, noise=0.5):`",
    ):
        assert what in found


def test_messages_and_docstrings_are_left_alone():
    for m in mutants("toy", SOURCE):
        assert "Docstrings stay: 1 - 2." in m.source
        assert "s + 1" in m.source


def test_arguments_that_may_be_swapped_are_left_alone():
    found = {m.what for m in mutants("toy", "def f(a, b):\n    return g(max(a, b), b)\n")}
    assert any(what.startswith("swapped arguments: g(") for what in found)
    assert not any("max(b, a)" in what for what in found)


def test_each_mutant_is_one_change_and_has_a_name_of_its_own():
    found = mutants("toy", SOURCE)
    original = ast.unparse(ast.parse(SOURCE)).split("\n")
    assert len({m.name for m in found}) == len({m.source for m in found}) == len(found)
    for m in found:
        lines = m.source.split("\n")
        assert len(lines) == len(original)
        assert sum(a != b for a, b in zip(lines, original, strict=True)) == 1


def test_equivalent_mutants_still_exist():
    known = yaml.safe_load(verdicts.EQUIVALENT.read_text(encoding="utf8"))
    modules = {name.split(".py")[0] for name in known}
    names = {m.name for module in modules for m in mutants(module, verdicts.source(module))}
    assert set(known) <= names, f"take them out: {set(known) - names}"
    assert all(isinstance(reason, str) and reason for reason in known.values())


def test_a_mutant_is_what_the_import_gives():
    """In a process of its own: the tests of `exact` pass unchanged; with the score's sign flipped they fail."""
    mutant = next(
        m
        for m in mutants("exact", verdicts.source("exact"))
        if m.function == "score" and m.what.startswith("dropped sign")
    )
    assert mutate.in_process(_imported_score_sign, mutant, limit=100) == -1
    assert mutate.in_process(_imported_score_sign, mutate._unchanged("exact"), limit=100) == 1


def _imported_score_sign(mutant, answer):
    import sys

    import torch

    for name in [n for n in sys.modules if n.startswith("diffusion_core")]:
        del sys.modules[name]
    torch.set_num_threads(1)
    mutate.install(mutant)
    from diffusion_core.exact import GaussianMixture
    from diffusion_core.schedules import NoiseSchedule, linear_betas

    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    score = data.score(NoiseSchedule.from_betas(linear_betas()))(torch.tensor([[-2.0]]), 5)
    answer.put(int(score.sign()))


def test_only_tests_that_reach_a_function_are_run():
    tests, outside = mutate.in_process(mutate.observe_tests, "exact", limit=200)
    functions = {name.split("::")[1].split("[")[0]: t.functions for name, t in tests.items()}
    assert ("exact", "score") in functions["test_eps_is_the_expected_noise"]
    assert ("exact", "score") not in functions["test_the_density_integrates_to_1"]
    score = next(m for m in mutants("exact", verdicts.source("exact")) if m.function == "score")
    found = mutate.reaching(score, tests, outside)
    assert 1 < len(found) < len(tests)
    assert [tests[name].seconds for name in found] == sorted(tests[name].seconds for name in found)


def test_verdicts_fall_with_what_they_were_about():
    code, tests = verdicts.function_hashes("exact"), verdicts.tests_hash("exact")
    found = {"exact.py, sample: a": "caught", "exact.py, sample: b": "survived", "exact.py, score: c": "caught"}
    stored = {"functions": code, "tests": tests, "verdicts": found}
    assert verdicts.still_valid("exact", stored) == stored
    caught = {name: verdict for name, verdict in found.items() if verdict == "caught"}
    assert verdicts.still_valid("exact", stored | {"tests": "other"})["verdicts"] == caught
    other = stored | {"functions": code | {"sample": "other"}}
    assert verdicts.still_valid("exact", other)["verdicts"] == {"exact.py, score: c": "caught"}
    assert verdicts.still_valid("exact", {}) == {"functions": code, "tests": tests, "verdicts": {}}


def test_a_function_has_another_hash_when_its_code_changes_and_only_then(monkeypatch):
    text = 'def f(x):\n    """Says this."""\n    return x + 1\n\n\ndef g(x):\n    return x\n'
    monkeypatch.setattr(verdicts, "source", lambda module: text)
    before = verdicts.function_hashes("exact")
    text = text.replace("this", "that")
    assert verdicts.function_hashes("exact") == before
    text = text.replace("x + 1", "x + 2")
    after = verdicts.function_hashes("exact")
    assert (after["f"] != before["f"], after["g"] == before["g"]) == (True, True)


def test_the_verdict_on_a_slice_falls_with_its_cells_and_with_the_function_of_its_bug():
    bug = "exact.py, sample: a"
    entry = {"hash": "cells", "mutant": bug, "function": verdicts.function_hash(bug)}
    assert verdicts.still_failing(entry, "cells")
    assert not verdicts.still_failing(entry, "other cells")
    assert not verdicts.still_failing(entry | {"function": "other"}, "cells")
    assert not verdicts.still_failing(entry | {"mutant": None, "function": None}, "cells")
    assert not verdicts.still_failing(None, "cells")
    gone = {"hash": "cells", "mutant": "exact.py, gone: a", "function": None}
    assert not verdicts.still_failing(gone, "cells")


def test_runs_side_by_side_keep_what_the_other_has_found(monkeypatch, tmp_path):
    monkeypatch.setattr(verdicts, "RESULT", tmp_path / "mutation.json")
    first, second = verdicts.load(), verdicts.load()
    first["modules"]["exact"] = {"verdicts": {"a": "caught"}}
    second |= {"slices": {"chapter: DDPM 4": {}}, "equations": {"DDPM 4": []}}
    verdicts.store(first, "exact")
    verdicts.store(second)
    assert verdicts.load() == {"modules": first["modules"], "slices": second["slices"], "equations": second["equations"]}
    assert [path.name for path in tmp_path.iterdir()] == ["mutation.json"]


def test_functions_that_name_an_equation_are_tried_first():
    assert mutate.functions_of_equation("DDPM 7") >= {("ddpm", "q_posterior"), ("ddpm", "_step_rates")}
    assert ("ddpm", "ddpm_step") in mutate.functions_of_equation("DDPM 11")
    assert ("ddpm", "ddpm_step") not in mutate.functions_of_equation("DDPM 1")
    assert mutate.functions_of_equation("nobody 7") == set()


def test_the_page_of_bugs_counts(monkeypatch):
    entry = {"functions": {}, "tests": "", "verdicts": {"exact.py, f: a": "caught", "exact.py, f: b": "survived", "exact.py, f: c": "survived"}}
    monkeypatch.setattr(verdicts, "load", lambda: {"modules": {"exact": entry}, "equations": {}})
    monkeypatch.setattr(verdicts, "equivalents", lambda: {"exact.py, f: c": "nothing changes"})
    text = bugs.page()
    assert "| [`exact`](api/exact.md) | 2 | 1 | 50.0% | 1 | no |" in text
    assert "- exact.py, f: b\n" in text
    assert "- exact.py, f: c — nothing changes" in text


def test_a_slice_can_be_of_some_equations_only():
    cells = [
        "a, b = 1.0, 2.0",
        "check('a', a - 1, within=0, equation='DDPM 4')",
        "check('b', b - 1, within=0, equation='DDPM 7')",
    ]
    path = layout.BOOK / "1-intuition" / "not-a-chapter.ipynb"
    text = json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells]})
    found = slices.equation_slice(_File(path, text), ["DDPM 4"])
    assert found.equations == ["DDPM 4"]
    assert len(found.cells) == 2


def test_the_mark_of_a_slice_is_that_of_its_code_without_comments_and_other_imports():
    path = layout.BOOK / "1-intuition" / "not-a-chapter.ipynb"

    def mark(imports, rest="a = math.pi"):
        cells = [imports, rest, "check('a', a, within=4, equation='DDPM 4')"]
        text = json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells]})
        return slices.equation_slice(_File(path, text)).mark

    plain = mark("import math")
    assert mark("import math\nfrom os import path, sep") == plain
    assert mark("import sys\nimport math  # for pi\nif sys.argv:\n    import json") != plain  # another statement
    assert mark("import math", "a = math.pi  # the ratio") == plain
    assert mark("import math", "a = math.tau") != plain


def test_a_slice_is_the_cells_that_a_check_needs(tmp_path):
    cells = [
        "import math\nfrom diffusion_core.checks import check",
        "unused = 1 / 0",
        "%matplotlib inline\na = 3.0",
        "check('three', a - 3, within=0, equation='DDPM 4; DDPM 7')",
        "check('also three', a - 4, within=0, equation='DDPM 2')",
    ]
    path = layout.BOOK / "1-intuition" / "not-a-chapter.ipynb"
    text = json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells]})
    found = slices.equation_slice(_File(path, text))
    assert found.equations == ["DDPM 4", "DDPM 7", "DDPM 2"]
    assert len(found.cells) == 4
    assert found.failures() == {"DDPM 2": ["also three"]}


@pytest.mark.parametrize(
    ("source", "reads", "sets"),
    [
        ("y = x + 1\nz = y", {"x"}, {"y", "z"}),
        ("x += 1", {"x"}, {"x"}),
        ("for t, u in pairs:\n    s = t + u + v", {"pairs", "v"}, {"t", "u", "s"}),
        ("with opened(p) as f:\n    text = f.read()", {"opened", "p"}, {"f", "text"}),
        ("if a:\n    b = 1", {"a"}, set()),
        ("if a:\n    b = 1\nelse:\n    b = c", {"a", "c"}, {"b"}),
        ("while a:\n    b = 1\nc = b", {"a", "b"}, {"c"}),
        ("try:\n    a = 1\nexcept Wrong:\n    b = 2\nfinally:\n    c = d", {"Wrong", "d"}, {"c"}),
        ("def f(x, y=start):\n    z = x\n    return z + scale", {"start", "scale"}, {"f"}),
        ("class C(Base):\n    size = n\n    def f(self):\n        return self.size * m", {"Base", "n", "m"}, {"C"}),
        ("f = lambda x: x * a\nrow = [i * b for i in many]", {"a", "b", "many"}, {"f", "row"}),
        ("import a.b, c as d\nfrom e import g as h", set(), {"a", "d", "h"}),
        ("x.y = z\nw[i] = 1\nfirst, *rest = q", {"x", "z", "w", "i", "q"}, {"first", "rest"}),
    ],
)
def test_what_a_piece_of_code_reads_and_sets(source, reads, sets):
    found = names.flow(ast.parse(source).body)
    assert (found[0] - {"__name__", "__module__", "__qualname__"}, found[1]) == (reads, sets)


def test_a_cell_that_only_may_set_a_name_is_in_the_slice_with_the_cell_before_it():
    assert names.stored(ast.parse("if a:\n    b = 1").body) == {"b"}
    cells = ["b = 0", "if early:\n    b = 1", "check('b', b, within=0, equation='DDPM 4')"]
    assert len(_slice_of(["early = False", *cells]).cells) == 4


def test_the_syntax_is_the_same_however_code_is_written_and_another_for_other_code():
    def of(code):
        return syntax(ast.parse(code))

    assert of("f'{a[\"b\"]}'") == of('f"""{a[\'b\']}"""  # quotes')
    assert of("def f(x): return (x)") == of("def f(x):\n    return x")
    assert len({repr(of(code)) for code in ("x", "y", "'x'", "-x", "x - 1", "x - 1.0", "None", "f(x)", "f(x=x)")}) == 9


def test_a_slice_ends_where_a_name_is_set_anew():
    cells = ["t = 1 / 0", "t = 3", "for i in range(2):\n    t = t + i", "check('t', t - 4, within=0, equation='DDPM 4')", "t = None"]
    found = _slice_of(cells)
    assert found.cells == [cells[1], cells[2], cells[3]]


def _slice_of(cells):
    path = layout.BOOK / "1-intuition" / "not-a-chapter.ipynb"
    return slices.equation_slice(_File(path, json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells]})))


def test_a_failure_that_is_shown_is_no_check():
    cells = ["with caught():\n    check('wrong on purpose', 1, within=0, equation='DDPM 4')", "check('b', 0, within=0, equation='DDPM 7')"]
    path = layout.BOOK / "1-intuition" / "not-a-chapter.ipynb"
    text = json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells]})
    assert slices.equation_slice(_File(path, text)).equations == ["DDPM 7"]


def test_formulas_are_changed_before_anything_else():
    found = mutate._interleaved([mutants("exact", verdicts.source("exact"))])
    formula = [m.what.startswith(mutate.FORMULA) for m in found]
    assert formula == sorted(formula, reverse=True)
    assert len({m.function for m in found[:5]}) > 1


class _File:
    """A path whose text is given, so that nothing is written into the book."""

    def __init__(self, path, text):
        self.path, self.text = path, text

    def read_text(self, encoding):
        return self.text

    def __fspath__(self):
        return str(self.path)
