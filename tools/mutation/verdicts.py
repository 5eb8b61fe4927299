"""What the last mutation run found: one verdict for each mutant, in book/_data/mutation.json.

  {"modules": {"networks/unet": {"functions": {NAME: ...}, "tests": ..., "verdicts": {MUTANT: "caught" or "survived"}}},
   "proofs": {"CHAPTER: KEY": {"hash": ..., "mutant": MUTANT or null, "function": ...}}, "equations": {KEY: [MUTANT, ...]}}

`functions`, `tests` and `hash` are hashes of what was run. The verdicts on a function fall when it changes; when the tests of its
module change, those of the survivors do. The verdict on a proof falls when its cells change, or the function with its bug.
"""

import ast
import hashlib
import json
import os
from dataclasses import dataclass

from tools import layout
from tools.mutation.syntax import syntax

TESTS = {
    "schedules": ["tests/test_schedules.py"],
    "prediction": ["tests/test_prediction.py"],
    "sampling": ["tests/test_sampling.py", "tests/test_ddpm.py"],
    "ddpm": ["tests/test_ddpm.py"],
    "likelihood": ["tests/test_likelihood.py"],
    "ddim": ["tests/test_ddim.py"],
    "sde": ["tests/test_sde.py"],
    "guidance": ["tests/test_guidance.py"],
    "exact": ["tests/test_exact.py"],
    "networks/unet": ["tests/networks/test_unet.py"],
    **{
        f"training/{module}": [f"tests/training/test_{name}.py" for name in names.split()]
        for module, names in {
            "average": "average loop",
            "batches": "batches loop",
            "checkpoints": "checkpoints loop resume",
            "config": "config loop",
            "loop": "loop checkpoints processes resume stopping",
            "stopping": "stopping loop",
            "validation": "validation loop",
        }.items()
    },
    "files": [
        "tests/test_files.py",
        "tests/training/test_checkpoints.py",
        "tests/training/test_resume.py",
    ],
}
RESULT = layout.BOOK / "_data" / "mutation.json"
EQUIVALENT = layout.ROOT / "tools" / "mutation" / "equivalent.yml"


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


def function_hashes(module):
    """Of every function of a module, without its docstrings. Functions of one name, in several classes, have one hash."""
    texts = {}
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.FunctionDef):
            texts.setdefault(node.name, []).append(repr(syntax(_without_docstrings(node))))
    return {
        name: _hash(*(text.encode() for text in found)) for name, found in sorted(texts.items())
    }


def function_of(mutant):
    """(module, function) that a mutant's name names."""
    module, function = mutant.split(": ", 1)[0].split(".py, ")
    return module, function


def function_hash(mutant):
    """Of the function that a mutant, by its name, changes; None if there is no mutant, or no such function any more."""
    if mutant is None:
        return None
    module, function = function_of(mutant)
    return function_hashes(module).get(function)


def tests_hash(module):
    """Of a module's tests."""
    return _hash(
        *((layout.ROOT / name).read_bytes() for name in ["tests/conftest.py", *TESTS[module]])
    )


def _hash(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def still_valid(module, entry):
    """An entry with the verdicts that need not be found again."""
    now, before, tests = function_hashes(module), entry.get("functions", {}), tests_hash(module)
    same = {name for name in now if before.get(name) == now[name]}
    verdicts = {
        name: verdict
        for name, verdict in entry.get("verdicts", {}).items()
        if function_of(name)[1] in same and (verdict == "caught" or entry.get("tests") == tests)
    }
    return {"functions": now, "tests": tests, "verdicts": verdicts}


def still_failing(entry, mark):
    """Whether a proof's stored verdict is still to be trusted: a bug was found, in a function that is as it was."""
    return (
        entry is not None
        and entry["hash"] == mark
        and None not in (entry["mutant"], entry["function"])
        and (entry["function"] == function_hash(entry["mutant"]))
    )


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(...)
    return tree


def equivalents():
    import yaml

    return yaml.safe_load(EQUIVALENT.read_text(encoding="utf8")) or {}


def load():
    return (
        json.loads(RESULT.read_text(encoding="utf8"))
        if RESULT.exists()
        else {"modules": {}, "equations": {}}
    )


def store(result, module=None):
    """Write one module's verdicts, or those on the equations. The rest of the file stays as another run may have left it."""
    now = load()
    if module is None:
        now |= {part: result[part] for part in ("proofs", "equations")}
    else:
        now["modules"][module] = result["modules"][module]
    temporary = RESULT.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    temporary.replace(RESULT)


def summary(module, entry):
    """The verdicts of one module, sorted."""
    known, verdicts = equivalents(), entry["verdicts"]
    return Summary(
        caught=[name for name, verdict in verdicts.items() if verdict == "caught"],
        equivalent={
            name: known[name]
            for name, verdict in verdicts.items()
            if verdict == "survived" and name in known
        },
        survived=[
            name
            for name, verdict in verdicts.items()
            if verdict == "survived" and name not in known
        ],
        current=entry["functions"] == function_hashes(module),
    )
