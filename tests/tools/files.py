"""The files of the project, for the tests that read or copy them all."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tools import layout


def project_files(root: Path = layout.ROOT) -> list[Path]:
    """Every file that git carries, or would carry."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not shutil.which("git") or subprocess.run(listing, cwd=root, capture_output=True).returncode:
        pytest.skip("needs git, and a clone")
    listed = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    return [root / name for name in sorted(listed.split("\0")) if name and (root / name).is_file()]


def text_files(root: Path = layout.ROOT) -> dict[Path, str]:
    """Those that are text, with it."""
    found = {}
    for path in project_files(root):
        try:
            found[path] = path.read_text(encoding="utf8")
        except UnicodeDecodeError:
            continue
    return found


def copy_of_the_project(folder: Path) -> Path:
    """The same files in another folder."""
    for path in project_files():
        target = folder / path.relative_to(layout.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder
