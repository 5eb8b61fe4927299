"""Rewrite every reference page that is generated: `python -m tools.pages` (`make pages`)."""

import os

from tools import layout
from tools.pages import write_all

if __name__ == "__main__":
    for path in write_all():
        print(f"wrote {os.path.relpath(path, layout.ROOT)}")
