"""What the last mutation run found: one verdict for each mutant, in book/_data/mutation.json.

  {"modules": {"ddpm": {"fingerprint": ..., "verdicts": {MUTANT: "caught" or "survived"}}}, "equations": {KEY: [MUTANT, ...]}}
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
    survived; and whether module and tests are still the ones that were run."""

    caught: list
    equivalent: dict
    survived: list
    current: bool

    @property
    def counted(self):
        return len(self.caught) + len(self.survived)


def source(module):
    return (layout.PACKAGE / f"{module}.py").read_text(encoding="utf8")


def fingerprint(module):
    """Hash of a module without its docstrings, and of its tests: what a stored result depends on."""
    files = [layout.ROOT / "tests" / "conftest.py", *(layout.ROOT / t for t in TESTS[module])]
    files += [layout.ROOT / "tools" / "mutants.py"]
    parts = [_without_docstrings(source(module)).encode(), *(f.read_bytes() for f in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


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
        current=entry["fingerprint"] == fingerprint(module),
    )
