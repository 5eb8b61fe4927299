"""A bug runs in a process of its own, forked from one that has imported everything but the package."""

import importlib.abc
import importlib.util
import multiprocessing
import os
import signal
import sys
import time

from tools import layout
from tools.mutation.mutants import Mutant
from tools.mutation.reach import Reach
from tools.mutation.verdicts import TESTS, source

PYTEST = ["-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
LIMIT = 300  # seconds for one mutant; one that takes longer (an endless loop) counts as caught


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


def install(mutant):
    """From now on `import diffusion_core.MODULE` gives the mutant."""
    name = f"diffusion_core.{mutant.module.replace('/', '.')}"

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


def unchanged(module):
    return Mutant(module, "", 0, "nothing", source(module))


def run_tests(mutant, tests, answer):
    """In a process of its own: does one of these tests fail?"""
    _start(mutant)
    import pytest

    answer.put(int(pytest.main([*PYTEST, "-x", *tests])) != 0)


def observe_tests(module, answer):
    """In a process of its own: which functions of the unchanged module does each test call, and how long does it take?"""
    _start(unchanged(module))
    import pytest

    reach = Reach(module)
    passed = int(pytest.main([*PYTEST, *TESTS[module]], plugins=[reach])) == 0
    answer.put((reach.tests, reach.outside) if passed else None)


def run_proof(mutant, proof, answer):
    """In a process of its own: which checks of these cells fail? Answers {equation: [claim, ...]}."""
    _start(mutant)
    answer.put(proof.run().failed)


def observe_proof(proof, modules, answer):
    """In a process of its own: the failures of the unchanged package (there should be none), and the functions that are called."""
    _start(None)
    reach = Reach(*modules)
    failed = proof.run().failed
    sys.setprofile(None)
    answer.put((failed, reach.outside))


def _start(mutant):
    """What every process does first: one thread, no output, the mutant in place of its module."""
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import torch

    torch.set_num_threads(1)
    if mutant is not None:
        install(mutant)
