"""Why is a chapter's stored output out of date? What it was made of, compared with what stands there now.

A notebook's metadata keeps, since its last run, {"book": {"code": SHA-256 of its code cells, "reached": {FILE: SHA-256}}}:
the files of the package that its kernel opened, that is the modules it imported, each as a whole, and the weights, cards
and tables it read. Prose, and files that no cell reached, may change freely.
"""

import hashlib
import json

from tools import layout


def digest(path):
    """SHA-256 of a file; text with line ends made alike."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        data = data.replace(b"\r\n", b"\n")
    return hashlib.sha256(data).hexdigest()


def code_digest(nb):
    """SHA-256 of a notebook's code cells."""
    code = ["".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def package_digests():
    """{file of the package, relative to it: its SHA-256}."""
    return {
        path.relative_to(layout.PACKAGE).as_posix(): digest(path) for path in layout.package_files()
    }


def record(nb, reached, digests):
    """What a notebook's metadata keep about a run that reached these files, while package_digests() gave `digests`."""
    return {
        "code": code_digest(nb),
        "reached": {file: digests[file] for file in sorted(set(reached) & digests.keys())},
    }


def reasons(nb, digests):
    """Why a notebook has to run again where package_digests() gives `digests`: [] where its outputs are current."""
    stored = nb["metadata"].get("book", {})
    if not stored.get("reached"):
        return ["what its last run reached is not stored"]
    found = [] if stored.get("code") == code_digest(nb) else ["its code cells changed"]
    for file, was in stored["reached"].items():
        if digests.get(file) != was:
            found.append(f"{file} {'changed' if file in digests else 'is gone'}")
    return found
