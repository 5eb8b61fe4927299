"""The bugs that `make mutate` puts in: that they are the ones meant, and that each is one small change."""

import ast

import pytest
import yaml

from tools import mutate
from tools.mutation import process, verdicts
from tools.mutation.mutants import Mutant, mutants
from tools.mutation.syntax import syntax
from tools.pages import bugs

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
    assert process.in_process(_imported_score_sign, mutant, limit=100) == -1
    assert process.in_process(_imported_score_sign, process.unchanged("exact"), limit=100) == 1


def _imported_score_sign(mutant, answer):
    import sys

    import torch

    for name in [n for n in sys.modules if n.startswith("diffusion_core")]:
        del sys.modules[name]
    torch.set_num_threads(1)
    process.install(mutant)
    from diffusion_core.exact import GaussianMixture
    from diffusion_core.schedules import NoiseSchedule, linear_betas

    data = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1))
    score = data.score(NoiseSchedule.from_betas(linear_betas()))(torch.tensor([[-2.0]]), 5)
    answer.put(int(score.sign()))


def test_only_tests_that_reach_a_function_are_run():
    tests, outside = process.in_process(process.observe_tests, "exact", limit=200)
    functions = {name.split("::")[1].split("[")[0]: t.functions for name, t in tests.items()}
    assert ("exact", "score") in functions["test_eps_is_the_expected_noise"]
    assert ("exact", "score") not in functions["test_the_density_integrates_to_1"]
    score = next(m for m in mutants("exact", verdicts.source("exact")) if m.function == "score")
    found = mutate.reaching(score, tests, outside)
    assert 1 < len(found) < len(tests)
    assert [tests[name].seconds for name in found] == sorted(tests[name].seconds for name in found)


def test_a_call_in_another_thread_is_reached():
    """Batches are drawn in one."""
    assert ("exact", "sample") in process.in_process(_reached_by_a_thread, limit=100)


def _reached_by_a_thread(answer):
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from diffusion_core.exact import GaussianMixture
    from tools.mutation.reach import Reach

    data, reach = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1)), Reach("exact")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(data.sample, 1).result()
    answer.put(reach.outside)


def test_verdicts_fall_with_what_they_were_about():
    code, tests = verdicts.function_hashes("exact"), verdicts.tests_hash("exact")
    found = {
        "exact.py, sample: a": "caught",
        "exact.py, sample: b": "survived",
        "exact.py, score: c": "caught",
    }
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


def test_the_verdict_on_a_proof_falls_with_its_cells_and_with_the_function_of_its_bug():
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
    second |= {"proofs": {"chapter: DDPM 4": {}}, "equations": {"DDPM 4": []}}
    verdicts.store(first, "exact")
    verdicts.store(second)
    assert verdicts.load() == {
        "modules": first["modules"],
        "proofs": second["proofs"],
        "equations": second["equations"],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["mutation.json"]


@pytest.mark.parametrize(
    ("key", "module", "function", "expected"),
    [
        ("DDPM 7", "ddpm", "q_posterior", True),
        ("DDPM 7", "ddpm", "q_sample", False),
        ("DDPM 7", "exact", "q_posterior", False),
        ("DDPM 2", "schedules", "beta_at", True),
        ("Attention 1", "networks/unet", "forward", True),
        ("nobody 7", "ddpm", "q_posterior", False),
    ],
)
def test_the_function_that_is_an_equation_is_tried_first(key, module, function, expected):
    assert mutate.is_equation(Mutant(module, function, 1, "", ""), key) == expected


def test_every_equation_is_in_a_module_that_is_searched():
    assert {"ddpm", "networks/unet", "evaluation/metrics"} <= set(mutate.EQUATION_MODULES)


def test_the_page_of_bugs_counts(monkeypatch):
    monkeypatch.setattr(verdicts, "function_hashes", lambda module: {"f": "now"})
    entry = {
        "functions": {},
        "tests": "",
        "verdicts": {
            "exact.py, f: a": "caught",
            "exact.py, f: b": "survived",
            "exact.py, f: c": "survived",
        },
    }
    monkeypatch.setattr(
        verdicts,
        "load",
        lambda: {"modules": {"exact": entry, "networks/unet": entry}, "equations": {}},
    )
    monkeypatch.setattr(verdicts, "equivalents", lambda: {"exact.py, f: c": "nothing changes"})
    text = bugs.page()
    assert "| [`exact`](api/exact.md) | 2 | 1 | 50.0% | 1 | no |" in text
    assert "| [`networks.unet`](api/networks.md) | 2 | " in text
    assert "{dropdown} networks.unet: not caught (1)" in text
    assert "- exact.py, f: b\n" in text
    assert "- exact.py, f: c — nothing changes" in text


def test_the_syntax_is_the_same_however_code_is_written_and_another_for_other_code():
    def of(code):
        return syntax(ast.parse(code))

    assert of("f'{a[\"b\"]}'") == of('f"""{a[\'b\']}"""  # quotes')
    assert of("def f(x): return (x)") == of("def f(x):\n    return x")
    assert (
        len(
            {
                repr(of(code))
                for code in ("x", "y", "'x'", "-x", "x - 1", "x - 1.0", "None", "f(x)", "f(x=x)")
            }
        )
        == 9
    )


def test_formulas_are_changed_before_anything_else():
    found = mutate._interleaved([mutants("exact", verdicts.source("exact"))])
    formula = [m.what.startswith(mutate.FORMULA) for m in found]
    assert formula == sorted(formula, reverse=True)
    assert len({m.function for m in found[:5]}) > 1
