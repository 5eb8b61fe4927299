"""Which functions of the package does a piece of code call? And each test, and how long does it take?"""

import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from tools import layout


@dataclass
class Test:
    """One test: its id, the (module, function) pairs that it called, its time."""

    name: str
    functions: set = field(default_factory=set)
    seconds: float = 0.0


class Reach:
    """Notes every call of a function of these modules of the package, from now on; as a pytest plugin, test by test.

    `tests`: {id: Test}; `outside`: what was called outside of a test, as when the tests are imported.
    """

    def __init__(self, *modules):
        self.files = {str(layout.PACKAGE / f"{module}.py"): module for module in modules}
        self.tests = {}
        self.outside = self._now = set()
        sys.setprofile(self._note)
        threading.setprofile(self._note)  # of threads that start from now on

    def _note(self, frame, event, argument):
        if event == "call" and (module := self.files.get(frame.f_code.co_filename)):
            self._now.add((module, frame.f_code.co_name))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        test = self.tests.setdefault(item.nodeid, Test(item.nodeid))
        self._now, began = test.functions, time.perf_counter()
        try:
            return (yield)
        finally:
            test.seconds = time.perf_counter() - began
            self._now = self.outside
