"""What the last mutation run found: one verdict for each mutant, in book/_data/mutation.json.

  {"modules": {"ddpm": {"code": ..., "tests": ..., "verdicts": {MUTANT: "caught" or "survived"}}}, "equations": {KEY: [MUTANT, ...]}}

`code` and `tests` are hashes of what was run. All verdicts fall when the module changes; when only its tests change, those of the
survivors do.
"""

import ast
import hashlib
import json
from dataclasses import dataclass

from tools import layout

TESTS = {
    "schedules": ["tests/test_schedules.py"],
    "ddpm": ["tests/test_ddpm.py"],
    "exact": ["tests/test_exact.py"],
    "unet": ["tests/test_unet.py"],
    "training": ["tests/test_training.py"],
}
RESULT = layout.BOOK / "_data" / "mutation.json"
EQUIVALENT = layout.ROOT / "tools" / "equivalent_mutants.yml"


@dataclass(frozen=True)
class Summary:
    """Of one module: mutants that were caught; {mutant: reason} of those that change nothing one could observe; those that
    survived; and whether the module is still the one that was run."""

    caught: list
    equivalent: dict
    survived: list
    current: bool

    @property
    def counted(self):
        return len(self.caught) + len(self.survived)


def source(module):
    return (layout.PACKAGE / f"{module}.py").read_text(encoding="utf8")


def code_hash(module):
    """Of a module without its docstrings, and of the bugs that are put into it."""
    return _hash(_without_docstrings(source(module)).encode(), (layout.ROOT / "tools" / "mutants.py").read_bytes())


def tests_hash(module):
    """Of a module's tests."""
    return _hash(*((layout.ROOT / name).read_bytes() for name in ["tests/conftest.py", *TESTS[module]]))


def _hash(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def still_valid(module, entry):
    """An entry with the verdicts that need not be found again."""
    code, tests, verdicts = code_hash(module), tests_hash(module), entry.get("verdicts", {})
    if entry.get("code") != code:
        verdicts = {}
    elif entry.get("tests") != tests:
        verdicts = {name: verdict for name, verdict in verdicts.items() if verdict == "caught"}
    return {"code": code, "tests": tests, "verdicts": verdicts}


def _without_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(...)
    return ast.unparse(tree)


def equivalents():
    import yaml

    return yaml.safe_load(EQUIVALENT.read_text(encoding="utf8")) or {}


def load():
    return json.loads(RESULT.read_text(encoding="utf8")) if RESULT.exists() else {"modules": {}, "equations": {}}


def store(result):
    temporary = RESULT.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    temporary.replace(RESULT)


def summary(module, entry):
    """The verdicts of one module, sorted."""
    known, verdicts = equivalents(), entry["verdicts"]
    return Summary(
        caught=[name for name, verdict in verdicts.items() if verdict == "caught"],
        equivalent={name: known[name] for name, verdict in verdicts.items() if verdict == "survived" and name in known},
        survived=[name for name, verdict in verdicts.items() if verdict == "survived" and name not in known],
        current=entry["code"] == code_hash(module),
    )
