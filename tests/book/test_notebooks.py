"""The chapters as files: run in order, current, small, readable in Colab, legible to a screen reader.

That their outputs are right is nbval's part (`make test` runs it over every chapter); but nbval passes a notebook without
outputs, sees no old picture and reads no prose, hence these guards.
"""

import json
import re
import shutil
import subprocess
from functools import cache

import nbformat
import pytest

from tools import address, layout, stale
from tools.execute import ADDRESS

CHAPTERS = layout.chapters()
NUMBERED = [path for path in CHAPTERS if re.match(r"\d-", path.parent.name)]
TAGS = {
    "given",
    "remove-cell",
    "hide-cell",
    "hide-input",
    "hide-output",
    "nbval-ignore-output",
    "raises-exception",
}
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")
MYST = {
    "a role": re.compile(r"\{[a-z][a-z:_-]*\}`"),
    "a directive": re.compile(r"^\s*(`{3,}|:{3,}|~{3,})\{", re.MULTILINE),
    "a label": re.compile(r"^\([^()\s]+\)=\s*$", re.MULTILINE),
    "a LaTeX label": re.compile(r"\\(label|eqref|ref)\{"),
    "a MyST comment": re.compile(r"^% ", re.MULTILINE),
    "a substitution": re.compile(r"\{\{.+?\}\}(?!\})(?<!\}\}\})(?=\s*$)", re.MULTILINE),
    "a relative image": re.compile(r"!\[[^\]]*\]\((?!https?:|data:)"),
    "an image from elsewhere": re.compile(r"!\[[^\]]*\]\(https?:|<img\s", re.IGNORECASE),
}


@cache
def read(path):
    return nbformat.read(path, as_version=4)


@cache
def digests():
    return stale.package_digests()


def reached(path):
    """The files of the package that the last run of a chapter opened."""
    return set(read(path).metadata.get("book", {}).get("reached", {}))


def named_files(code):
    """The files of the package that code names: modules in imports, weights and tables where they are loaded."""
    for module in re.findall(r"^\s*(?:from|import) diffusion_core\.([\w.]+)", code, re.MULTILINE):
        file = module.replace(".", "/")
        yield f"{file}.py" if (layout.PACKAGE / f"{file}.py").is_file() else f"{file}/__init__.py"
    for net in re.findall(r'load_pretrained\("(\w+)"\)', code):
        yield from (f"weights/{net}.json", f"weights/{net}.safetensors")
    for table in re.findall(r'load_table\("(\w+)"\)', code):
        yield f"tables/{table}.json"


def name(path):
    return layout.chapter_name(path)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def first_line(cell):
    return (cell.source.splitlines() or [""])[0][:60]


def run_it_first(path):
    """The first cell that a reader sees under the heading "Run it first"."""
    cells = read(path).cells
    start = next(
        i
        for i, cell in enumerate(cells)
        if re.search(r"^## Run it first$", cell.source, re.MULTILINE)
    )
    folded = {"remove-cell", "hide-cell", "hide-input"}
    return next(
        cell
        for cell in cells[start:]
        if cell.cell_type == "code" and not folded & set(cell.metadata.get("tags", []))
    )


def without_code_and_maths(text):
    """Prose in which code and formulas are blanked: what looks like MyST there is none."""
    text = (
        re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        if not MYST["a directive"].search(text)
        else text
    )
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return re.sub(r"(?<!\\)\$[^$\n]*\$", "", text)


each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)
each_numbered = pytest.mark.parametrize("path", NUMBERED, ids=name)


def test_no_chapter_is_left_out_of_the_table_of_contents():
    found = {p for p in layout.BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert found == set(CHAPTERS)


@each_chapter
def test_format(path):
    raw = json.loads(path.read_text(encoding="utf8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    nbformat.validate(read(path))
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in raw["metadata"]
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(ids) == len(set(ids)), "cell ids repeat"
    assert path.stat().st_size < 1_000_000, (
        f"{path.stat().st_size / 1e6:.2f} MB; a notebook stays under 1 MB"
    )


@each_chapter
def test_code_fits_the_column(path):
    """84 characters are what the site shows without scrolling; the set-up cell is not shown."""
    cells = [c for c in code_cells(path) if "remove-cell" not in c.metadata.get("tags", [])]
    assert [line for cell in cells for line in cell.source.splitlines() if len(line) > 84] == []


@each_chapter
def test_every_cell_has_run_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run `make execute`"
    assert any(cell.outputs for cell in code_cells(path)), "no outputs: nbval would compare nothing"


@each_chapter
def test_stored_outputs_are_current(path):
    assert stale.reasons(read(path), digests()) == [], "`make execute`"


@pytest.mark.parametrize(
    "path", filter(reached, CHAPTERS), ids=name
)  # one without a record is stale
def test_record_holds_what_the_chapter_names(path):
    """What its cells import and load by name; and the schedules and the checks, which every chapter needs."""
    code = "\n".join(cell.source for cell in code_cells(path))
    assert {"__init__.py", "schedules.py", "checks.py", *named_files(code)} <= reached(path)


def test_not_every_chapter_reaches_the_classifier():
    judged = {
        name(path) for path in CHAPTERS if any("classifier" in file for file in reached(path))
    }
    assert not judged & {"1-intuition/forward-process", "reference/gaussian-toolbox"}


@each_chapter
def test_outputs_repeat_on_the_next_run(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            where = first_line(cell)
            assert output.output_type != "error" or "raises-exception" in cell.metadata.get(
                "tags", []
            ), where
            assert output.get("name") != "stderr", f"{where}: a warning or a progress bar is stored"
            text = output.get("text", "") or "".join(output.get("data", {}).get("text/plain", ""))
            assert not ADDRESS.search(text), f"{where}: an address in memory is stored"
            assert not {"application/vnd.jupyter.widget-view+json", "application/javascript"} & set(
                output.get("data", {})
            ), where
            html = "".join(output.get("data", {}).get("text/html", ""))
            assert not re.search(r"<script|https?://", html), f"{where}: HTML that loads something"


@each_chapter
def test_begins_with_title_and_colab_link_and_set_up(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# "), (
        "the first cell holds the title"
    )
    assert f"]({address.colab_link(path)})" in first.source, (
        f"expected a link [Open in Colab]({address.colab_link(path)})"
    )
    allowed = [
        address.colab_cell(extra)
        for extra in ("", "[compare]", "[text-to-image]", "[compare,text-to-image]")
    ]
    assert code_cells(path)[0].source.replace("# @title", "#@title") in allowed, (
        f"the first code cell must read\n\n{allowed[0]}"
    )
    assert "remove-cell" in code_cells(path)[0].metadata.get("tags", []), (
        "the site does not show the set-up cell: tag remove-cell"
    )


@each_chapter
def test_prose_is_markdown_that_colab_renders(path):
    for text in prose(path):
        plain = without_code_and_maths(text)
        for what, pattern in MYST.items():
            match = pattern.search(text if what in {"a directive", "a LaTeX label"} else plain)
            assert not match, (
                f"{what}, which Colab does not render: {match.group()!r} in {text[:80]!r}"
            )


@each_chapter
def test_displays_stand_on_lines_of_their_own(path):
    for text in prose(path):
        assert text.count("$$") % 2 == 0, f"an odd number of $$ in {text[:80]!r}"
        for match in re.finditer(r"\$\$.*?\$\$", text, re.DOTALL):
            before = text[: match.start()].rsplit("\n", 1)[-1]
            after = text[match.end() :].split("\n", 1)[0]
            assert not before.strip(" >") and not after.strip(), (
                f"$$ within a line: {match.group()[:80]!r}"
            )
            assert match.group().count(r"\tag") <= 1 or "align" in match.group(), (
                f"two tags in one display: {match.group()[:80]!r}"
            )
            assert not (r"\tag" in match.group() and r"\\" in match.group()), (
                f"Sphinx puts lines into a split environment, where no tag may stand: {match.group()[:80]!r}"
            )


@each_chapter
def test_folded_answers_have_blank_lines_around(path):
    for text in prose(path):
        for line in re.finditer(r"<details>.*|</details>", text):
            around = (
                text[max(0, line.start() - 2) : line.start()],
                text[line.end() : line.end() + 2],
            )
            if line.group() == "</details>":
                assert around[0] == "\n\n", (
                    f"a blank line is missing before </details> in {text[:60]!r}"
                )
            else:
                assert around[1] == "\n\n", f"a blank line is missing after {line.group()!r}"


@each_chapter
def test_figures_have_alt_text(path):
    for cell in code_cells(path):
        if any(kind in output.get("data", {}) for output in cell.outputs for kind in IMAGES):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, (
                f'{first_line(cell)}: cell metadata needs {{"mystnb": {{"image": {{"alt": "what is to be seen"}}}}}}'
            )


@each_chapter
def test_animations_are_not_compared_byte_by_byte(path):
    for cell in code_cells(path):
        if any(
            kind in output.get("data", {})
            for output in cell.outputs
            for kind in ("image/gif", "image/webp")
        ):
            assert "nbval-ignore-output" in cell.metadata.get("tags", []), first_line(cell)
        assert "to_jshtml" not in cell.source, (
            "to_jshtml loads from a CDN and is never the same twice"
        )


@each_chapter
def test_tags(path):
    for cell in code_cells(path):
        tags = set(cell.metadata.get("tags", []))
        assert tags <= TAGS, f"{first_line(cell)}: {tags - TAGS}"
        if "nbval-ignore-output" in tags:
            moving = any(
                kind in output.get("data", {}) for output in cell.outputs for kind in IMAGES
            )
            assert moving or re.search(r"\bcheck\(|\bassert\b", cell.source), (
                f"{first_line(cell)}: an ignored output needs a check in its cell"
            )
        if "hide-cell" in tags and re.match(r"#\s*@title\s+Solution", cell.source):
            assert cell.metadata.get("cellView") == "form", (
                f"{first_line(cell)}: a solution is folded in Colab too: cellView form"
            )


@each_chapter
def test_plot_cells_show_their_figure(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            text = (
                "".join(output.get("data", {}).get("text/plain", ""))
                if output.output_type == "execute_result"
                else ""
            )
            assert not re.match(r"(\[?<matplotlib|<Figure|<Axes|\[Text|Text\()", text), (
                f"{first_line(cell)}: end the cell with plt.show()"
            )


PINNED = dict(
    re.match(r"([\w.-]+)==([\w.]+)", line).groups()
    for line in (layout.ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    if "==" in line and not line.startswith("#")
)


def keeps(value, bound):
    """Whether a measured value keeps the bound as check() writes it."""
    if bound == "exact":
        return value == 0
    kind, limit = bound.rsplit(" ", 1)
    limit = float(limit) * (1 + 1e-5)  # written with six digits
    return {
        "within": abs(value) <= limit,
        "at most": value <= limit,
        "at least": value >= limit * (1 - 2e-5),
    }[kind]


@each_chapter
def test_run_is_recorded(path):
    record = json.loads(layout.run_file(path).read_text(encoding="utf8"))
    assert record["chapter"] == name(path)
    assert record["seconds"] <= 120, f"{record['seconds']} s; a chapter takes at most two minutes"
    assert record["versions"].items() <= PINNED.items(), (
        "run with other versions than those of constraints.txt"
    )
    for check in record["checks"]:
        assert keeps(check["measured"], check["bound"]), check


@pytest.mark.skipif(not CHAPTERS, reason="no chapters yet")
def test_chapters_take_75_seconds_on_average():
    seconds = [
        json.loads(layout.run_file(path).read_text(encoding="utf8"))["seconds"] for path in CHAPTERS
    ]
    assert sum(seconds) / len(seconds) <= 75


@each_numbered
def test_has_the_shape_of_a_chapter(path):
    text = "\n\n".join(prose(path)).lower()
    for part in ("you will be able to", "exercises", "what we now know"):
        assert part in text, f"the chapter has no part {part!r}"
    assert (
        "#@title Solution" in "\n".join(cell.source for cell in code_cells(path))
        or "<details>" in text
    ), "exercises have folded solutions"
    assert len(json.loads(layout.run_file(path).read_text(encoding="utf8"))["checks"]) >= 5, (
        "a chapter proves what it claims"
    )

    first = run_it_first(path)
    lines = [
        line
        for line in first.source.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) <= 10, (
        f"{len(lines)} lines to run first: put what is not needed there into a folded cell before"
    )
    assert any(kind in output.get("data", {}) for output in first.outputs for kind in IMAGES), (
        "what is run first shows a figure"
    )
    assert re.search(r"\d", "".join(output.get("text", "") for output in first.outputs)), (
        "what is run first prints a number"
    )


@each_chapter
def test_a_check_that_is_shown_to_fail_names_no_equation(path):
    """It proves nothing, so the ledger and the injected bugs take no notice of it."""
    for cell in code_cells(path):
        for _, block in re.findall(
            r"^( *)with caught\(.*\):\n((?:\1 +.*\n?)+)", cell.source, re.MULTILINE
        ):
            assert "equation=" not in block, first_line(cell)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_skeleton_of_a_chapter(tmp_path):
    """`make chapter` writes a notebook whose set-up and link are those that every chapter has."""
    file, title = layout.BOOK / "3-variants" / "ddim.ipynb", "DDIM: fewer steps"
    target = tmp_path / "3-variants" / "ddim.ipynb"
    command = ["make", "--silent", "chapter", f"FILE={target}", f"TITLE={title}"]
    assert subprocess.run(command, cwd=layout.ROOT).returncode == 0
    nb = nbformat.read(target, as_version=4)
    nbformat.validate(nb)
    assert nb.cells[0].source.startswith(f"# {title}\n")
    assert address.colab_link(file) in nb.cells[0].source.replace(
        str(target), file.relative_to(layout.ROOT).as_posix()
    )
    assert nb.cells[1].source == address.colab_cell()
    assert subprocess.run(command, cwd=layout.ROOT, capture_output=True).returncode != 0, (
        "what is there is left alone"
    )
