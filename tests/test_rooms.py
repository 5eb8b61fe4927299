"""The rooms of the package: imports go one way only."""

import re
from pathlib import Path

import pytest

import diffusion_core
from tools.pages.imports import MATHEMATICS, imported

PACKAGE = Path(diffusion_core.__file__).parent

# The order of the rooms, and of the files that are not in one: each imports from lines above its own, never beside or below.
ORDER = (
    ("_validate", "checks"),
    ("files", "schedules"),
    ("prediction", "exact"),
    ("sampling",),
    ("ddpm", "guidance", "sde"),
    ("ddim", "likelihood"),
    ("networks", "data"),
    ("interop", "plotting", "training"),
    ("pretrained",),
    ("text_to_image",),
    ("evaluation",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def rooms():
    """{room: the other rooms that it imports}."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.setdefault(room, set()).update(imported(file.read_text(encoding="utf8")))
    return {room: others - {room} for room, others in found.items()}


def faults(found):
    """What is imported against the order, one sentence each."""
    for room, others in sorted(found.items()):
        if room not in LEVEL:
            yield f"{room} has no place in ORDER"
            continue
        for other in sorted(others):
            if other not in LEVEL:
                yield f"{room} imports {other}, which has no place in ORDER"
            elif LEVEL[other] >= LEVEL[room]:
                yield f"{room} imports {other}, which does not stand above it"
        if room in MATHEMATICS and not others <= {*MATHEMATICS, "_validate"}:
            yield f"{room} is mathematics, and imports a room"
        if room == "networks" and others & set(MATHEMATICS):
            yield "networks know nothing of schedules"


def test_imports_go_one_way():
    assert not list(faults(rooms()))


def test_imports_name_the_package():
    """A relative import would not be seen here."""
    sources = [file.read_text(encoding="utf8") for file in PACKAGE.rglob("*.py")]
    assert not any(re.search(r"^\s*from \.", source, re.MULTILINE) for source in sources)


def test_the_package_itself_imports_no_room():
    assert not set(imported((PACKAGE / "__init__.py").read_text(encoding="utf8")))


@pytest.mark.parametrize(
    ("room", "source", "fault"),
    [
        ("ddpm", "from diffusion_core.training import train", "ddpm imports training"),
        ("ddpm", "from diffusion_core import ddim", "ddpm imports ddim"),
        ("sampling", "def f():\n    import diffusion_core.ddpm", "sampling imports ddpm"),
        ("networks", "from diffusion_core.schedules import expand", "networks know nothing"),
        ("ddpm", "from diffusion_core.files import write", "ddpm is mathematics"),
        ("training", "from diffusion_core.evaluation.metrics import moments", "training imports"),
        ("attic", "", "attic has no place"),
        (
            "training",
            "from diffusion_core.attic import box",
            "training imports attic, which has no",
        ),
    ],
)
def test_a_wrong_import_is_found(room, source, fault):
    (found,) = [f for f in faults({room: set(imported(source))}) if f.startswith(fault)]
    assert found
