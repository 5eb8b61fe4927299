"""Every test of the package, the tools and the site, then every chapter run again and compared with its stored outputs.

`python -m tools.verify [arguments for pytest]` (`make test`): one pytest run, no GPU, no network. `conftest.py` sees to the rest.
"""

import os
import sys

from tools import layout


def main():
    os.chdir(layout.ROOT)
    import pytest

    arguments = sys.argv[1:] or ["tests", *map(str, layout.chapters())]
    sys.exit(pytest.main(["--nbval", "--nbval-cell-timeout=600", "--durations=15", *arguments]))


if __name__ == "__main__":
    main()
