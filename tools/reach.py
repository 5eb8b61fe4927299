"""A pytest plugin that notes which functions of one file each test calls, and how long the test takes."""

import sys
import time
from dataclasses import dataclass, field

import pytest


@dataclass
class Test:
    """One test: its id, the names of the functions that it called, its time."""

    name: str
    functions: set = field(default_factory=set)
    seconds: float = 0.0


class Reach:
    """`tests`: {id: Test}; `at_import`: functions that were called while the tests were imported."""

    def __init__(self, path):
        self.path = str(path)
        self.tests = {}
        self.at_import = set()
        self._now = self.at_import
        sys.setprofile(self._note)

    def _note(self, frame, event, argument):
        if event == "call" and frame.f_code.co_filename == self.path:
            self._now.add(frame.f_code.co_name)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        test = self.tests.setdefault(item.nodeid, Test(item.nodeid))
        self._now, began = test.functions, time.perf_counter()
        try:
            return (yield)
        finally:
            test.seconds = time.perf_counter() - began
            self._now = set()
