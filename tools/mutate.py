"""Put bugs into the package, one at a time, and count those that the tests, and the chapters' checks, catch.

`python -m tools.mutate [MODULE ...]` (`make mutate`): for every mutant of schedules, ddpm, exact, unet and training, a
process of its own runs the tests of that module against it. Then the cells of the chapters that lead to a
check(..., equation=...) run against the mutants of schedules, ddpm and exact, until every equation has been failed by one.
Results go to book/_data/mutation.json; a run that was stopped goes on where it was. Mutants that change nothing one could
observe are named, with the reason, in tools/equivalent_mutants.yml; every other survivor is listed.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time

from tools import layout
from tools.mutants import mutants
from tools.reach import Reach
from tools.slices import equation_slice

TESTS = {
    "schedules": ["tests/test_schedules.py"],
    "ddpm": ["tests/test_ddpm.py"],
    "exact": ["tests/test_exact.py"],
    "unet": ["tests/test_unet.py"],
    "training": ["tests/test_training.py"],
}
EQUATION_MODULES = ("schedules", "ddpm", "exact", "metrics", "unet")
RESULT = layout.BOOK / "_data" / "mutation.json"
EQUIVALENT = layout.ROOT / "tools" / "equivalent_mutants.yml"
PYTEST = ["-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:nbval"]
LIMIT = 300  # seconds for one mutant; one that takes longer (an endless loop) counts as caught


def fingerprint(module):
    """Hash of a module without its docstrings, and of its tests: what a stored result depends on."""
    files = [layout.ROOT / "tests" / "conftest.py", *(layout.ROOT / t for t in TESTS[module])]
    files += [layout.ROOT / "tools" / "mutants.py"]
    parts = [_without_docstrings(_source(module)).encode(), *(f.read_bytes() for f in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(...)
    return ast.unparse(tree)


def install(mutant):
    """From now on `import diffusion_core.MODULE` gives the mutant."""
    import importlib.abc
    import importlib.util

    name = f"diffusion_core.{mutant.module}"

    class Loader(importlib.abc.Loader):
        def exec_module(self, module):
            exec(compile(mutant.source, module.__spec__.origin, "exec"), module.__dict__)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname, path=None, target=None):
            if fullname != name:
                return None
            origin = str(layout.PACKAGE / f"{mutant.module}.py")
            return importlib.util.spec_from_file_location(fullname, origin, loader=Loader())

    sys.meta_path.insert(0, Finder())


def quiet():
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def start_tests(mutant):
    """What every process does before it runs tests: one thread, no output, the mutant in place of its module."""
    os.setsid()
    quiet()
    import torch

    torch.set_num_threads(1)
    install(mutant)


def run_tests(mutant, tests, answer):
    """In a process of its own: does one of these tests fail?"""
    start_tests(mutant)
    import pytest

    answer.put(int(pytest.main([*PYTEST, "-x", *tests])) != 0)


def observe_tests(module, answer):
    """In a process of its own: which functions of the unchanged module does each test call, and how long does it take?"""
    start_tests(_unchanged(module))
    import pytest

    reach = Reach(layout.PACKAGE / f"{module}.py")
    passed = int(pytest.main([*PYTEST, *TESTS[module]], plugins=[reach])) == 0
    answer.put((reach.tests, reach.at_import) if passed else None)


def run_slices(mutant, slices, answer):
    """In a process of its own: which checks of the chapters' slices fail? Answers {equation: [claim, ...]}."""
    os.setsid()
    quiet()
    import torch

    torch.set_num_threads(1)
    if mutant is not None:
        install(mutant)
    answer.put({name: s.failures() for name, s in slices.items()})


def in_process(target, *arguments, limit=LIMIT):
    """The answer of a forked process, or None if it died or took too long."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=target, args=(*arguments, answer))
    process.start()
    deadline = time.monotonic() + limit
    while process.is_alive() and answer.empty() and time.monotonic() < deadline:
        time.sleep(0.02)
    found = None if answer.empty() else answer.get()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()
    return found


def equivalents():
    import yaml

    return yaml.safe_load(EQUIVALENT.read_text(encoding="utf8")) or {}


def load():
    return json.loads(RESULT.read_text(encoding="utf8")) if RESULT.exists() else {"modules": {}, "equations": {}}


def store(result):
    temporary = RESULT.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    temporary.replace(RESULT)


def try_module(module, result):
    """Run every mutant of one module that has no stored verdict yet."""
    entry = result["modules"].get(module, {})
    if entry.get("fingerprint") != fingerprint(module):
        entry = {"fingerprint": fingerprint(module), "verdicts": {}}
    result["modules"][module] = entry
    observed = in_process(observe_tests, module)
    if observed is None:
        sys.exit(f"the tests of {module} fail without any mutant: mend them first")
    todo = [m for m in mutants(module, _source(module)) if m.name not in entry["verdicts"]]
    for i, mutant in enumerate(todo, 1):
        tests = reaching(mutant.function, *observed)
        caught = bool(tests) and in_process(run_tests, mutant, tests) is not False
        entry["verdicts"][mutant.name] = "caught" if caught else "survived"
        if not caught or i % 20 == 0:
            print(f"{module} {i}/{len(todo)}" + ("" if caught else f"  SURVIVED line {mutant.line}: {mutant.what}"), flush=True)
        if i % 5 == 0 or i == len(todo):
            store(result)
    summarize(module, entry)
    store(result)


def reaching(function, tests, at_import):
    """The tests that may notice a change of this function, the fastest first: those that call it; all of them, if it runs when
    the tests are imported."""
    found = sorted(tests.values(), key=lambda t: (function not in t.functions, t.seconds))
    return [t.name for t in found if function in t.functions or function in at_import]


def summarize(module, entry):
    """Counts and survivors of one module, from its verdicts and the list of equivalent mutants."""
    known = equivalents()
    survived = [name for name, verdict in entry["verdicts"].items() if verdict == "survived"]
    entry["equivalent"] = {name: known[name] for name in survived if name in known}
    entry["survivors"] = [name for name in survived if name not in known]
    counted = len(entry["verdicts"]) - len(entry["equivalent"])
    entry["caught"] = counted - len(entry["survivors"])
    entry["mutants"] = counted
    print(
        f"{module}: {entry['caught']} of {counted} caught ({entry['caught'] / counted:.1%}), "
        f"{len(entry['equivalent'])} equivalent, {len(entry['survivors'])} survived"
    )


def try_equations(result, enough=1):
    """Run the chapters' slices against mutants until every equation has been failed `enough` times."""
    slices = {layout.chapter_name(p): equation_slice(p) for p in layout.chapters()}
    slices = {name: s for name, s in slices.items() if s.equations}
    baseline = {name: in_process(run_slices, None, {name: s})[name] for name, s in slices.items()}
    caught = {key: [] for s in slices.values() for key in s.equations}
    queue = _interleaved([mutants(module, _source(module)) for module in EQUATION_MODULES])
    for i, mutant in enumerate(queue):
        open_ = {n: s for n, s in slices.items() if any(len(caught[k]) < enough for k in s.equations)}
        if not open_:
            break
        for name, s in open_.items():
            failed = in_process(run_slices, mutant, {name: s}, limit=60)
            for key, claims in (failed or {}).get(name, {}).items():
                if set(claims) - set(baseline[name].get(key, [])):
                    caught[key].append(mutant.name)
        if i % 20 == 0:
            print(f"equations, mutant {i}: {sum(bool(v) for v in caught.values())} of {len(caught)} failed by one", flush=True)
            store(result | {"equations": caught})
    result["equations"] = caught
    store(result)
    print(f"equations: {sum(bool(v) for v in caught.values())} of {len(caught)} have a check that a mutant makes fail")
    for key, found in caught.items():
        if not found:
            print(f"  no mutant fails a check of {key}")


def _interleaved(lists):
    """Mutants of different functions in turn, so that every function is soon touched."""
    groups = {}
    for m in (m for found in lists for m in found):
        groups.setdefault((m.module, m.function), []).append(m)
    rows = list(groups.values())
    return [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]


def _source(module):
    return (layout.PACKAGE / f"{module}.py").read_text(encoding="utf8")


def _unchanged(module):
    from tools.mutants import Mutant

    return Mutant(module, "", 0, "nothing", _source(module))


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: {' '.join(TESTS)} equations")
    arguments = parser.parse_args()
    os.environ.update(layout.kernel_environment())
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(layout.ROOT)
    # imported before the forks, so that each of them starts fast; the package itself is not among them
    import diffusers
    import IPython
    import matplotlib.pyplot
    import numpy
    import pytest
    import torch

    del diffusers, IPython, matplotlib, numpy, pytest, torch
    wanted = arguments.modules or [*TESTS, "equations"]
    result = load()
    for module in wanted:
        try_equations(result) if module == "equations" else try_module(module, result)
    left = [name for entry in result["modules"].values() for name in entry.get("survivors", [])]
    total = sum(entry.get("mutants", 0) for entry in result["modules"].values())
    print(f"in all: {total - len(left)} of {total} caught. Table: {RESULT.relative_to(layout.ROOT)}")


if __name__ == "__main__":
    main()
