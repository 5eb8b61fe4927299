"""Put bugs into the package, one at a time, and count those that the tests, and the chapters' checks, catch.

`python -m tools.mutate [MODULE ...]` (`make mutate`): for every mutant of a module, a process of its own runs the tests of that
module against it. Then the cells of the chapters that prove an equation run against the mutants of the functions that they call,
until each equation has been failed by one.
Results go to book/_data/mutation.json; a run that was stopped goes on where it was; runs of different modules, or of a module and of
"equations", may go side by side; a change of the tests alone tries the survivors again (--again: all of them). Mutants that change
nothing one could observe are named, with the reason, in tools/mutation/equivalent.yml; every other survivor is listed.
"""

import argparse
import functools
import gc
import importlib
import itertools
import os
import sys

from diffusion_core import EQUATIONS
from tools import environment, layout
from tools.mutation import proofs, verdicts
from tools.mutation.mutants import mutants
from tools.mutation.process import in_process, observe_proof, observe_tests, run_proof, run_tests
from tools.pages import write_all

PLACES = [f"{place}." for place in EQUATIONS.values()]
EQUATION_MODULES = [
    m for m in layout.modules() if any(p.startswith(f"{m.replace('/', '.')}.") for p in PLACES)
]
# tried first on equations
FORMULA = ("sign", "dropped sqrt", "dropped power", "dropped term", "dropped factor", "operator")
# imported before the forks, so that each of them starts fast; the package itself must not be among them
HEAVY = [
    "torch",
    "torch.utils.flop_counter",
    "torchvision.datasets",
    "safetensors.torch",
    "scipy.linalg",
    "sklearn.datasets",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.embeddings",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_ddim",
    "denoising_diffusion_pytorch",
    "matplotlib.pyplot",
    "IPython.display",
    "pytest",
]
PROOF_LIMIT = 600  # seconds; a test may take process.LIMIT


def try_module(module, result):
    """Run every mutant of one module that has no stored verdict yet."""
    entry = result["modules"][module] = verdicts.still_valid(
        module, result["modules"].get(module, {})
    )
    observed = in_process(observe_tests, module)
    if observed is None:
        sys.exit(f"the tests of {module} fail without any mutant: mend them first")
    present = mutants(module, verdicts.source(module))
    names = {m.name for m in present}
    entry["verdicts"] = {
        name: verdict for name, verdict in entry["verdicts"].items() if name in names
    }
    todo = [m for m in present if m.name not in entry["verdicts"]]
    for i, mutant in enumerate(todo, 1):
        tests = reaching(mutant, *observed)
        caught = bool(tests) and in_process(run_tests, mutant, tests) is not False
        entry["verdicts"][mutant.name] = "caught" if caught else "survived"
        if not caught or i % 20 == 0:
            print(
                f"{module} {i}/{len(todo)}"
                + ("" if caught else f"  SURVIVED line {mutant.line}: {mutant.what}"),
                flush=True,
            )
        if i % 5 == 0:
            verdicts.store(result, module)
    verdicts.store(result, module)
    report(module, entry)


def report(module, entry):
    found = verdicts.summary(module, entry)
    print(
        f"{module}: {len(found.caught)} of {found.counted} caught ({len(found.caught) / found.counted:.1%}), "
        f"{len(found.equivalent)} equivalent, {len(found.survived)} survived"
    )


def reaching(mutant, tests, outside):
    """The tests that may notice this change, the fastest first: those that call the function; all of them, if it is called when
    the tests are imported."""
    function = mutant.module, mutant.function
    found = sorted(tests.values(), key=lambda t: (function not in t.functions, t.seconds))
    return [t.name for t in found if function in t.functions or function in outside]


def try_equations(result, only=()):
    """For every chapter and every equation that it checks: a mutant that makes one of the checks fail, if there is one. Proofs
    that have not changed since the last run keep their verdict. A run that is stopped leaves the others as they were."""
    known, seen = result.setdefault("proofs", {}), set()
    for path in layout.chapters():
        for key in proofs.proven_by(path):
            proof = proofs.of_chapter(path, key)
            name, mark = f"{proof.chapter}: {key}", proof.mark
            seen.add(name)
            if verdicts.still_failing(known.get(name), mark) or (only and key not in only):
                continue
            mutant = failed_by(proof, key, known.get(name, {}).get("mutant"))
            known[name] = {
                "hash": mark,
                "mutant": mutant,
                "function": verdicts.function_hash(mutant),
            }
            result["equations"][key] = _bugs_of(key, known)
            verdicts.store(result)
    result["proofs"] = {name: entry for name, entry in known.items() if name in seen}
    present = {name.split(": ")[1] for name in seen}
    result["equations"] = {key: bugs for key, bugs in result["equations"].items() if key in present}
    verdicts.store(result)
    caught = result["equations"]
    print(
        f"equations: {sum(map(bool, caught.values()))} of {len(present)} have a check that a mutant makes fail"
    )


def _bugs_of(key, known):
    """The different mutants that the proofs of an equation were failed by."""
    return list(
        dict.fromkeys(
            e["mutant"] for name, e in known.items() if name.split(": ")[1] == key and e["mutant"]
        )
    )


def failed_by(proof, key, first=None):
    """The first mutant that makes a check of this equation fail by its numbers, or None. `first`, by its name, is tried first."""
    observed = in_process(observe_proof, proof, EQUATION_MODULES, limit=PROOF_LIMIT)
    if observed is None or observed[0]:
        sys.exit(
            f"{proof.chapter}: checks of {key} fail, or take too long, without any mutant: {observed and observed[0]}"
        )
    queue = _interleaved(
        [m for m in _mutants_of(module) if (module, m.function) in observed[1]]
        for module in EQUATION_MODULES
    )
    queue.sort(
        key=lambda m: (m.name != first, not is_equation(m, key))
    )  # a stable sort: the rest keeps its order
    for i, mutant in enumerate(queue, 1):
        claims = (in_process(run_proof, mutant, proof, limit=PROOF_LIMIT) or {}).get(key, [])
        if any(
            not claim.startswith(proofs.RAISED) for claim in claims
        ):  # a number must be wrong; stopping is not enough
            print(
                f"{proof.chapter}, mutant {i} of {len(queue)}: {key} failed by {mutant.name}",
                flush=True,
            )
            return mutant.name
    print(f"{proof.chapter}: no mutant fails a check of {key}", flush=True)
    return None


@functools.lru_cache
def _mutants_of(module):
    return mutants(module, verdicts.source(module))


def is_equation(mutant, key):
    """Whether a mutant changes the function that is this equation; where that is a class, any function of its module."""
    module = f"{mutant.module.replace('/', '.')}."
    name = (
        EQUATIONS.get(key, "").removeprefix(module)
        if EQUATIONS.get(key, "").startswith(module)
        else ""
    )
    return name.rpartition(".")[2] == mutant.function or (name[:1].isupper() and "." not in name)


def _interleaved(lists):
    """Mutants of different functions in turn: first all that change a formula, then the others."""
    found = [m for one in lists for m in one]
    formula = [m for m in found if m.what.startswith(FORMULA)]
    return _in_turn(formula) + _in_turn([m for m in found if not m.what.startswith(FORMULA)])


def _in_turn(found):
    groups = {}
    for m in found:
        groups.setdefault((m.module, m.function), []).append(m)
    return [m for row in itertools.zip_longest(*groups.values()) for m in row if m]


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="MODULE",
        help=f"default: {' '.join(verdicts.TESTS)} equations",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KEY",
        help='of the equations: these, such as "DDPM 7"',
    )
    parser.add_argument(
        "--again", action="store_true", help="forget every stored verdict of these modules"
    )
    arguments = parser.parse_args()
    os.environ.update(environment.kernel_environment())
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(layout.ROOT)
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # the forks need not search these objects for garbage
    wanted = arguments.modules or [*verdicts.TESTS, "equations"]
    result = verdicts.load()
    for module in wanted:
        if arguments.again:
            result["modules"].pop(module, None)
            if module == "equations":
                result["proofs"] = {}
        try_equations(result, arguments.only) if module == "equations" else try_module(
            module, result
        )
    found = [verdicts.summary(module, entry) for module, entry in result["modules"].items()]
    print(
        f"in all: {sum(len(s.caught) for s in found)} of {sum(s.counted for s in found)} caught. Table: {verdicts.RESULT.relative_to(layout.ROOT)}"
    )
    for path in write_all():
        print(f"wrote {path.relative_to(layout.ROOT)}")


if __name__ == "__main__":
    main()
