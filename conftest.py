"""For pytest, wherever in the repository it is started: the environment in which chapters run,
and the rule by which --nbval compares their outputs."""

import os

from tools import environment
from tools.outputs import compare_by_the_rule

os.environ.update(environment.kernel_environment())
del os.environ["MPLBACKEND"]  # nbval's kernels choose the inline backend themselves


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "compare_outputs"):  # a cell of nbval's
            compare_by_the_rule(item)
