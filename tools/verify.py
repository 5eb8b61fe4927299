"""Every test of the package, the tools and the site, then every chapter run again and compared with its stored outputs.

`python -m tools.verify [arguments for pytest]` (`make test`): one pytest run, strict nbval, no GPU, no network.
"""

import os
import sys

from tools import layout


def main():
    os.environ.update(layout.kernel_environment())
    os.environ.pop("MPLBACKEND")  # nbval's kernels choose the inline backend themselves
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    os.chdir(layout.ROOT)
    import pytest

    arguments = sys.argv[1:] or ["tests", *map(str, layout.chapters())]
    sys.exit(pytest.main(["--nbval", "--nbval-cell-timeout=600", "--durations=15", *arguments]))


if __name__ == "__main__":
    main()
