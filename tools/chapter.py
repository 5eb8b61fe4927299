"""Write the skeleton of a chapter: `python -m tools.chapter book/3-variants/ddim.ipynb "DDIM: fewer steps"` (`make chapter`)."""

import argparse
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import layout
from tools.execute import KERNELSPEC

PARTS = """
*About N s on two CPU cores. Explains `diffusion_core.MODULE`.*

A surprising figure or number, and the question that it raises.

**You will be able to**

- …

**Before this chapter:** …
## Run it first
## Predict
<details><summary>Answer</summary>

…

</details>
## Derive
| symbol | variable | diffusers' name |
|---|---|---|
| $x_t$ | `x_t` | `sample` |
## Build it
## The package's own
## Compare with another library
## For real
## What goes wrong
### …

**Symptom.** …

**Cause.** …
## Exercises
## What we now know
"""


def skeleton(path, title):
    """A notebook with the parts of a chapter in order, the Colab link and the set-up cell."""
    opening, *parts = ("\n" + PARTS.strip()).split("\n## ")
    cells = [
        new_markdown_cell(f"# {title}\n\n[Open in Colab]({layout.colab_link(path)})\n{opening}")
    ]
    cells.append(new_code_cell(layout.colab_cell(), metadata={"tags": ["remove-cell"]}))
    cells.append(
        new_code_cell(
            "import torch\n\nfrom diffusion_core.checks import check\nfrom diffusion_core.plotting import set_style\n\nset_style()"
        )
    )
    cells += [new_markdown_cell(f"## {part.strip()}") for part in parts]
    return new_notebook(
        cells=cells, metadata={"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="book/STEP/NAME.ipynb")
    parser.add_argument("title")
    options = parser.parse_args()
    path = options.file.resolve()
    if path.suffix != ".ipynb" or not path.is_relative_to(layout.BOOK):
        sys.exit(f"{options.file}: a chapter is an .ipynb below book/")
    if path.exists():
        sys.exit(f"{options.file} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        nbformat.writes(skeleton(path, options.title)) + "\n", encoding="utf8", newline="\n"
    )
    entry = path.relative_to(layout.ROOT).with_suffix("").as_posix()
    print(f"Wrote {options.file}. Its line in _toc.yml, under its step:\n  - file: {entry}")


if __name__ == "__main__":
    main()
