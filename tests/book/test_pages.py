"""Pages made from data agree with it, and with the code."""

import hashlib
import json
import re

import pytest

from tools import layout, pages
from tools.pages import equations, symptoms


@pytest.mark.parametrize(
    "maker", pages.GENERATED, ids=lambda maker: maker.__name__.rpartition(".")[2]
)
def test_generated_page_is_current(maker):
    assert maker.PAGE.read_text(encoding="utf8") == maker.page(), "run `make pages`"


def test_symptom_cases_are_complete():
    for path, _trail, fields in symptoms.cases():
        assert fields["Symptom"] and fields["Cause"], path


def test_the_landing_page_is_drawn_by_the_shipped_weights():
    record = json.loads((layout.BOOK / "_data" / "hero.json").read_text(encoding="utf8"))
    card = json.loads(
        (layout.PACKAGE / "weights" / f"{record['weights']}.json").read_text(encoding="utf8")
    )
    picture = (layout.BOOK / "_static" / "hero.gif").read_bytes()
    assert record["weights_sha256"] == card["sha256"], "other weights are shipped now: `make hero`"
    assert record["picture_sha256"] == hashlib.sha256(picture).hexdigest(), (
        "not the picture that was drawn: `make hero`"
    )


def test_every_resource_says_what_to_read_and_what_goes_with_it():
    text = (layout.BOOK / "resources.md").read_text(encoding="utf8")
    entries = re.findall(r"^(\S.*)\n: ((?:.+\n?)+)", text, re.MULTILINE)
    assert len(entries) >= 13
    for title, about in entries:
        assert re.search(r"\*\*(read|watch)\*\*", about, re.IGNORECASE), (
            f"{title}: nothing to read or watch"
        )
        assert "**Goes with** " in about, f"{title}: no chapter goes with it"


def test_equations_are_described():
    for key, about in equations.described().items():
        assert about["kind"] in equations.KINDS, key
        assert about["says"].endswith("."), key
        assert key.split(" ")[0] in equations.papers(), f"{key}: no such paper"
    unknown = set(equations.displayed()) - set(equations.described())
    assert not unknown, f"add to book/_data/equations.yml: {sorted(unknown)}"


def test_checks_name_equations_that_are_displayed():
    assert set(equations.checks()) <= set(equations.displayed())


@pytest.mark.parametrize("key", sorted(equations.displayed(), key=equations.order))
def test_equation_has_a_check(key):
    assert equations.checks().get(key), f"no check in any chapter names {key}"


@pytest.mark.skipif(equations.mutants() is None, reason="no mutation run is stored (make mutate)")
@pytest.mark.parametrize("key", sorted(equations.displayed(), key=equations.order))
def test_equation_has_a_check_that_a_bug_has_failed(key):
    kind = equations.described()[key]["kind"]
    assert kind == "definition" or equations.mutants().get(key), (
        f"no injected bug makes a check of {key} fail"
    )


def test_references_hold_every_paper():
    keys = set(
        re.findall(
            r"^@\w+\{([^,]+),",
            (layout.BOOK / "references.bib").read_text(encoding="utf8"),
            re.MULTILINE,
        )
    )
    assert {paper["cite"] for paper in equations.papers().values()} <= keys


def test_references_hold_every_preprint_that_a_page_links_to():
    bibliography = (layout.BOOK / "references.bib").read_text(encoding="utf8")
    linked = {}
    for path in map(layout.page_source, layout.toc_entries()):
        text = path.read_text(encoding="utf8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for number in re.findall(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", text):
            linked.setdefault(number, path.name)
    missing = {
        number: name
        for number, name in linked.items()
        if f"arxiv.org/abs/{number}}}" not in bibliography
    }
    assert linked and not missing, f"add to book/references.bib: {missing}"


def test_every_module_has_its_page():
    """A page a room, or a module outside of them, with every module of it."""
    pages = {}
    for module in layout.modules():
        pages.setdefault(module.split("/")[0], []).append(module)
    folder = "book/reference/api/"
    listed = {e.removeprefix(folder) for e in layout.toc_entries() if e.startswith(folder)}
    assert listed - {"index"} == set(pages), (
        "book/reference/api/NAME.md, with a line in _toc.yml, for every room and module"
    )
    table = (layout.ROOT / folder / "index.md").read_text(encoding="utf8")
    assert [page for page in pages if f"[`{page}`]({page}.md)" not in table] == [], (
        "a row in api/index.md is missing"
    )
    for page, modules in pages.items():
        text = (layout.ROOT / folder / f"{page}.md").read_text(encoding="utf8")
        assert set(re.findall(r"^```\{package-api\} (\S+)$", text, re.MULTILINE)) == set(modules), (
            page
        )
