"""The site: builds without a warning, one page per entry, nothing from elsewhere, no dead link, pages that agree with the code."""

import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from diffusion_core import EQUATIONS
from tools import address, benchmarks, book, layout, ledger, pages, stale, symptoms

# The files and the rooms at the top level of the package: each has a page.
PACKAGE_MODULES = sorted(
    {p.relative_to(layout.PACKAGE).parts[0].removesuffix(".py") for p in layout.PACKAGE.rglob("*.py")}
    - {"__init__", "__main__", "_validate"}
)
# What a page may not load from another host; `rel="canonical"` and ordinary links are no loading.
LOADING = {
    "script": "src",
    "img": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "iframe": "src",
    "embed": "src",
    "object": "data",
}
LOADING_RELS = {
    "stylesheet",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "icon",
    "shortcut",
    "modulepreload",
    "manifest",
}
ELSEWHERE = re.compile(r"^(https?:)?//")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The whole site, built anew; a warning is an error."""
    return book.build(tmp_path_factory.mktemp("site"), clean=True)


class Page(HTMLParser):
    """What a built page loads, links to and names."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.images, self.scripts = [], [], set(), [], []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if a.get("id"):
            self.ids.add(a["id"])
        if tag in LOADING and a.get(LOADING[tag]):
            self.loads.append(a[LOADING[tag]])
        if tag == "link" and set((a.get("rel") or "").split()) & LOADING_RELS:
            self.loads.append(a.get("href", ""))
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "img":
            self.images.append(a)
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts.append(data)


@cache
def page(path):
    return Page(path.read_text(encoding="utf8"))


def html_pages(site):
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.relative_to(site).parts)


# --- what is built ---


def test_one_page_per_entry_of_the_table_of_contents(site):
    entries = layout.toc_entries()
    assert len(entries) == len(set(entries))
    for entry in entries:
        built = site / f"{entry}.html"
        assert built.is_file(), f"{entry} was not built"
        assert layout.page_title(layout.page_source(entry)).replace("`", "")[:20] in re.sub(
            r"<[^>]+>", "", built.read_text(encoding="utf8")
        )
    assert (site / "index.html").is_file()


def test_nothing_is_loaded_from_elsewhere(site):
    for path in html_pages(site):
        outside = [url for url in page(path).loads if ELSEWHERE.match(url)]
        assert not outside, f"{path.relative_to(site)} loads {outside}"
        for script in page(path).scripts:
            assert not re.search(r"unpkg\.com|jsdelivr|cdnjs|googleapis|gstatic", script), (
                f"{path.relative_to(site)}: a script names a CDN"
            )
    for path in site.rglob("*.css"):
        found = re.findall(
            r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^)'\"]+)",
            path.read_text(encoding="utf8", errors="replace"),
        )
        assert not found, f"{path.relative_to(site)} loads {found}"


def test_no_dead_link_inside_the_site(site):
    missing = []
    for path in html_pages(site):
        for url in page(path).links + page(path).loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file():
                missing.append(f"{path.relative_to(site)} -> {url}")
            elif (
                parts.fragment
                and target.suffix == ".html"
                and unquote(parts.fragment) not in page(target).ids | {"", "top"}
            ):
                missing.append(f"{path.relative_to(site)} -> {url} (no such anchor)")
    assert not missing, "\n".join(missing[:30])


def test_every_picture_has_alt_text(site):
    for path in html_pages(site):
        for image in page(path).images:
            assert image.get("alt"), f"{path.relative_to(site)}: {image.get('src')}"


def test_formulas_need_no_network(site):
    assert (site / "_static" / "mathjax" / "tex-chtml.js").is_file()
    assert list((site / "_static" / "mathjax" / "output" / "chtml" / "fonts").rglob("*.woff"))
    loads = page(site / "book" / "reference" / "notation.html").loads
    assert any(url.split("?")[0].endswith("_static/mathjax/tex-chtml.js") for url in loads)


def test_chapters_have_their_buttons(site):
    for path in layout.chapters():
        built = site / path.relative_to(layout.ROOT).with_suffix(".html")
        links = page(built).links
        assert layout.colab_link(path) in links, f"{built.name}: no Colab link"
        assert any(path.name in url and "_sources" in url for url in links), (
            f"{built.name}: no download"
        )
        assert any("/edit/" in url for url in links), f"{built.name}: no edit link"


def test_search_finds_the_pages(site):
    index = (site / "searchindex.js").read_text(encoding="utf8")
    for entry in layout.toc_entries():
        assert f'"{entry}"' in index


# --- pages made from data ---


@pytest.mark.parametrize(
    "maker", pages.GENERATED, ids=lambda maker: maker.__name__.rpartition(".")[2]
)
def test_generated_page_is_current(maker):
    assert maker.PAGE.read_text(encoding="utf8") == maker.page(), "run `make pages`"


def test_symptom_cases_are_complete():
    for path, _trail, fields in symptoms.cases():
        assert fields["Symptom"] and fields["Cause"], path


def step_times(ratio):
    """A row's times and ratios, where every ratio has this median."""
    spread = {"low": ratio - 0.1, "median": ratio, "high": ratio + 0.1, "n": 11}
    return {f"{step}_{what}": spread for step in ("train", "sample") for what in ("ms", "ratio")}


def row(name, ratio, **more):
    return {"name": name, "parameters": 10**6, "multiply_adds": 10**8, "batch_size": 16, **step_times(ratio), **more}


def distance(name, seconds, value, seed=0):
    return {"name": name, "seed": seed, "seconds": seconds, "steps": 100, "frechet": value, "n": 1000}


def test_benchmarks_of_which_nothing_is_measured_have_a_page():
    assert "No run is stored yet." in benchmarks.text_of({})
    text = benchmarks.text_of({"cpu bf16": {"recipes": [row("ours", 1.0), row("diffusers", 2.0)]}})
    assert "Not measured yet: `python -m benchmarks overhead`" in text
    assert "Not measured yet: `python -m benchmarks budget`" in text
    assert "All 2 aims below that could be decided are met." in text


def test_benchmarks_say_which_aims_are_missed():
    section = {
        "overhead": {"ours": [row("ours", 1.0), row("lucidrains", 0.9996), row("diffusers", 1.0, peak_memory_mib=12.3)]},
        "recipes": [row("ours", 1.0), row("lucidrains", 2.9), row("diffusers", 1.6)],
        "provenance": {"budget": {"command": "python -m benchmarks budget", "date": "2026-01-01", "hardware": "a GPU", "torch": "2"}},
        "budget": [
            *(distance("ours", 30.0, value, seed) for seed, value in enumerate((3.0, 5.0))),
            *(distance("lucidrains", 30.0, value, seed) for seed, value in enumerate((3.5, 4.0))),
            distance("diffusers", 30.0, 4.5),
            distance("lucidrains", 60.0, 9.0),
            distance("train images", 0, 0.1),
        ],
    }
    missed = [what for met, what in benchmarks.aims("cuda fp32", section) if not met]
    assert missed == [
        "training step with our network (GPU, fp32): ratio 0.999 [0.899,\N{NO-BREAK SPACE}1.09] to lucidrains, aim 1",
        "sampling step with our network (GPU, fp32): ratio 0.999 [0.899,\N{NO-BREAK SPACE}1.09] to lucidrains, aim 1",
        "training step with each library's own network (GPU, fp32): ratio 2.90 [2.80,\N{NO-BREAK SPACE}3.00] to lucidrains, aim 3",
        "sampling step with each library's own network (GPU, fp32): ratio 2.90 [2.80,\N{NO-BREAK SPACE}3.00] to lucidrains, aim 3",
        "Fréchet distance after 30 s (GPU, fp32): ours 4.00, that of lucidrains 3.75",
    ]
    text = benchmarks.text_of({"cuda fp32": section})
    assert all(f"- {what}\n" in text for what in missed)
    assert "Of 10 aims below that could be decided, 5 are missed" in text
    assert "| 30 | ours | 100 | 4.00 ± 1.41 | 2 |" in text
    assert "| 60 | lucidrains | 100 | 9.00 | 1 |  |" in text, "nothing of ours to compare with"
    assert "have the distance 0.10" in text
    assert "| Equal seconds, GPU, fp32 | `python -m benchmarks budget` | 2026-01-01 | a GPU | 2 |" in text
    assert "| One network, three libraries, GPU, fp32 | – | – | – | – |" in text
    assert "| 12 |" in text and "| – |" in text


def test_the_landing_page_is_drawn_by_the_shipped_weights():
    record = json.loads((layout.BOOK / "_data" / "hero.json").read_text(encoding="utf8"))
    card = json.loads((layout.PACKAGE / "weights" / f"{record['weights']}.json").read_text(encoding="utf8"))
    picture = (layout.BOOK / "_static" / "hero.gif").read_bytes()
    assert record["weights_sha256"] == card["sha256"], "other weights are shipped now: `make hero`"
    assert record["picture_sha256"] == hashlib.sha256(picture).hexdigest(), "not the picture that was drawn: `make hero`"


def test_every_resource_says_what_to_read_and_what_goes_with_it():
    text = (layout.BOOK / "resources.md").read_text(encoding="utf8")
    entries = re.findall(r"^(\S.*)\n: ((?:.+\n?)+)", text, re.MULTILINE)
    assert len(entries) >= 13
    for title, about in entries:
        assert re.search(r"\*\*(read|watch)\*\*", about, re.IGNORECASE), f"{title}: nothing to read or watch"
        assert "**Goes with** " in about, f"{title}: no chapter goes with it"


def test_equations_are_described():
    for key, about in ledger.described().items():
        assert about["kind"] in ledger.KINDS, key
        assert about["says"].endswith("."), key
        assert key.split(" ")[0] in ledger.papers(), f"{key}: no such paper"
    unknown = set(ledger.displayed()) - set(ledger.described())
    assert not unknown, f"add to book/_data/equations.yml: {sorted(unknown)}"


def test_checks_name_equations_that_are_displayed():
    assert set(ledger.checks()) <= set(ledger.displayed())


@pytest.mark.parametrize("key", sorted(ledger.displayed(), key=ledger.order))
def test_equation_has_a_check(key):
    assert ledger.checks().get(key), f"no check in any chapter names {key}"


@pytest.mark.skipif(ledger.mutants() is None, reason="no mutation run is stored (make mutate)")
@pytest.mark.parametrize("key", sorted(ledger.displayed(), key=ledger.order))
def test_equation_has_a_check_that_a_bug_has_failed(key):
    kind = ledger.described()[key]["kind"]
    assert kind == "definition" or ledger.mutants().get(key), (
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
    assert {paper["cite"] for paper in ledger.papers().values()} <= keys


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
    missing = {number: name for number, name in linked.items() if f"arxiv.org/abs/{number}}}" not in bibliography}
    assert linked and not missing, f"add to book/references.bib: {missing}"


def test_every_module_has_its_page():
    entries = layout.toc_entries()
    missing = [m for m in PACKAGE_MODULES if f"book/reference/api/{m}" not in entries]
    assert not missing, f"add book/reference/api/NAME.md and its line in _toc.yml: {missing}"
    table = (layout.BOOK / "reference" / "api" / "index.md").read_text(encoding="utf8")
    assert all(f"[`{m}`]({m}.md)" in table for m in PACKAGE_MODULES), "a row in api/index.md is missing"
    extra = [
        e
        for e in entries
        if e.startswith("book/reference/api/")
        and e.rpartition("/")[2] not in [*PACKAGE_MODULES, "index"]
    ]
    assert not extra, f"pages of modules that do not exist: {extra}"


# --- notation ---


def notation_rows():
    """The four-column rows of the notation page: [(symbol, meaning, [our names], [diffusers' names]), ...]."""
    rows = []
    for line in (layout.BOOK / "reference" / "notation.md").read_text(encoding="utf8").splitlines():
        cells = (
            [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if line.startswith("|")
            else []
        )
        if len(cells) == 4 and cells[0] != "symbol":
            rows.append(
                (
                    cells[0],
                    cells[1],
                    re.findall(r"`([^`]+)`", cells[2]),
                    re.findall(r"`([^`]+)`", cells[3]),
                )
            )
    return rows


MODULES = sorted(
    ".".join(p.relative_to(layout.PACKAGE).with_suffix("").parts)
    for p in layout.PACKAGE.rglob("*.py")
    if not p.stem.startswith("_")
)
MATHEMATICS = [m for m in MODULES if "." not in m and f"{m}." in " ".join(EQUATIONS.values())]
NOTATION_MODULES = [*MATHEMATICS, "networks.unet", "training.config"]
# Arguments that are no symbols of the mathematics: who draws, what is checked, how wide a layer is.
STRUCTURAL = {
    "self",
    "cls",
    "generator",
    "like",
    "schedule",
    "coefficient",
    "component",
    "decoder",
    "n",
    "x",
    "low",
    "high",
    "nats",
    "steps",
    "strata",
    "name",
    "guided",
    "unguided",
}


def package_names():
    """(public names of the package, attributes written Class.name, arguments of public functions of NOTATION_MODULES)."""
    names, attributes, arguments = set(), set(), set()
    for module_name in MODULES:
        module = importlib.import_module(f"diffusion_core.{module_name}")
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            names.add(name)
            if inspect.isclass(value) and value.__module__ == module.__name__:
                attributes |= {
                    f"{name}.{a}"
                    for a in [*dir(value), *getattr(value, "__annotations__", {})]
                    if not a.startswith("_")
                }
            if (
                module_name in NOTATION_MODULES
                and getattr(value, "__module__", None) == module.__name__
            ):
                functions = (
                    [value]
                    if inspect.isfunction(value)
                    else [
                        f
                        for a, f in inspect.getmembers(value, inspect.isfunction)
                        if not a.startswith("_") and f.__module__ == module.__name__
                    ]
                    if inspect.isclass(value)
                    else []
                )
                for function in functions:
                    arguments |= set(inspect.signature(function).parameters)
    return names, attributes, arguments


def test_our_names_in_the_notation_exist():
    names, attributes, arguments = package_names()
    known = names | attributes | arguments
    unknown = [
        name
        for _, _, ours, _ in notation_rows()
        for name in ours
        if name not in known and not name.startswith('"')
    ]
    assert len(notation_rows()) > 30
    assert not unknown, f"the notation page names what the package does not have: {unknown}"


def test_the_notation_holds_every_argument_of_the_mathematics():
    listed = {name for _, _, ours, _ in notation_rows() for name in ours}
    mathematical = {module: set() for module in MATHEMATICS}
    for module_name in mathematical:
        module = importlib.import_module(f"diffusion_core.{module_name}")
        for name, value in vars(module).items():
            if (
                inspect.isfunction(value)
                and not name.startswith("_")
                and value.__module__ == module.__name__
            ):
                mathematical[module_name] |= set(inspect.signature(value).parameters)
    # `beta_max` and cosine_betas' own offset `s` are explained on its page
    missing = (
        {name for found in mathematical.values() for name in found}
        - listed
        - STRUCTURAL
        - {"beta_max"}
    )
    assert not missing, f"arguments that the notation page does not explain: {sorted(missing)}"


def test_the_notation_holds_the_contract():
    """Names that chapters, tests and other code build on, wherever their module exists already."""
    contract = {
        "schedules": [
            "NoiseSchedule.T",
            "NoiseSchedule.alpha_bar",
            "NoiseSchedule.alpha_bar_at",
            "NoiseSchedule.at",
            "NoiseSchedule.beta_at",
            "NoiseSchedule.snr",
            "NoiseSchedule.time_at",
            "timesteps",
            "karras_times",
        ],
        "prediction": ["predict_x0", "predict_v", "eps_from_v"],
        "ddpm": ["q_sample", "q_posterior", "ddpm_step", "eps_loss", "simple_loss"],
        "likelihood": ["vlb_terms"],
        "ddim": ["ddim_sigma", "ddim_step", "ddim_invert"],
        "guidance": ["classifier_free_guidance", "classifier_guidance", "clip_guidance"],
        "exact": ["GaussianMixture.log_prob", "GaussianMixture.score"],
        "networks.unet": ["UNet.forward", "UNet.null_label"],
    }
    listed = {name for _, _, ours, _ in notation_rows() for name in ours}
    _, attributes, _ = package_names()
    for module_name, names in contract.items():
        module = importlib.import_module(f"diffusion_core.{module_name}")
        for name in names:
            assert name in attributes or hasattr(module, name), f"the package lost {name}"
            assert name in listed, f"the notation page lacks {name}"


def test_diffusers_names_in_the_notation_exist():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    scheduler.set_timesteps(10)
    arguments = set()
    for function in (
        scheduler.step,
        scheduler.add_noise,
        scheduler._get_variance,
        diffusers.UNet2DModel.forward,
        diffusers.DDIMScheduler.step,
    ):
        arguments |= set(inspect.signature(function).parameters)
    arguments |= {"pred_original_sample"} & set(
        diffusers.schedulers.scheduling_ddpm.DDPMSchedulerOutput.__annotations__
    )
    for _, _, _, theirs in notation_rows():
        for name in theirs:
            name = name.split("[")[0]
            if name.startswith('"'):
                continue
            if name.startswith("DDPMScheduler.config."):
                assert name.rpartition(".")[2] in scheduler.config, name
            elif name.startswith("DDPMScheduler."):
                assert hasattr(scheduler, name.rpartition(".")[2]), name
            else:
                assert name in arguments or hasattr(diffusers, name), name


# --- one address ---


def copy_of_the_project(folder):
    """The files that git carries, in another folder."""
    for path in {*address.text_files(), *layout.package_files()}:
        target = folder / path.relative_to(layout.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def test_all_places_agree_on_the_address():
    owner, name = address.parts(layout.config()["repository"]["url"])
    places = {
        "pyproject.toml": f"https://github.com/{owner}/{name}",
        "CITATION.cff": f"https://github.com/{owner}/{name}",
        "README.md": f"https://github.com/{owner}/{name}",
        "_config.yml": f"https://{owner.lower()}.github.io/{name}/",
        "book/index.md": f"git clone https://github.com/{owner}/{name}",
    }
    for where, text in places.items():
        assert text in (layout.ROOT / where).read_text(encoding="utf8"), f"{where} lacks {text}"
    others = re.compile(r"github\.com/(?:github/)?([\w-]+)/" + re.escape(name))
    for path in address.text_files():
        if path.name != "test_site.py":
            found = set(others.findall(path.read_text(encoding="utf8", errors="replace")))
            assert found <= {owner, "github"}, f"{path}: {found}"


def test_one_command_changes_the_address_everywhere(tmp_path, monkeypatch):
    root = copy_of_the_project(tmp_path)
    monkeypatch.setattr(layout, "PACKAGE", root / "diffusion_core")
    (root / Path(__file__).relative_to(layout.ROOT)).unlink()  # it names the new address
    chapters = [root / path.relative_to(layout.ROOT) for path in layout.chapters()]
    store_record(chapters[0], stale.package_digests())
    store_record(chapters[1], {"schedules.py": "another"})
    current = {path for path in chapters if not why_stale(path)}
    old = layout.config()["repository"]["url"]
    before = len(address.places(old, root))
    done = subprocess.run(
        [sys.executable, "-m", "tools.address", "https://github.com/Somebody/a-fork"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert before and not address.places(old, root)
    assert len(address.places("https://github.com/Somebody/a-fork", root)) == before
    assert chapters[0] in current and chapters[1] not in current
    assert {path for path in chapters if not why_stale(path)} == current, (
        "outputs that were current stay current, no others become so"
    )


def store_record(path, digests):
    """Let a chapter say that its last run reached the schedules, when these were the digests."""
    nb = nbformat.read(path, as_version=4)
    nb.metadata["book"] = stale.record(nb, ["schedules.py"], digests)
    nbformat.write(nb, path)


def why_stale(path):
    return stale.reasons(nbformat.read(path, as_version=4), stale.package_digests())


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"should look like https://github\.com/OWNER/NAME"):
        address.parts("https://example.org/somewhere")


# --- installation ---


def requirement_lines(name):
    lines = [
        line.split("#")[0].strip()
        for line in (layout.ROOT / name).read_text(encoding="utf8").splitlines()
    ]
    return [line for line in lines if line]


def test_constraints_pin_what_is_tested():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in requirement_lines("constraints.txt")
    }
    for name in (
        "requirements.txt",
        "requirements-book.txt",
        "requirements-compare.txt",
        "requirements-test.txt",
        "requirements-lab.txt",
    ):
        for line in requirement_lines(name):
            requirement = Requirement(line)
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(pin, prereleases=True), (
                f"{name}: {line} does not admit the tested {pin}"
            )


def test_every_pin_can_be_installed_on_the_oldest_python_that_is_promised():
    """Some projects drop the first patches of a Python version (3.11.0 to 3.11.4, for instance,
    which Debian 12 has); such a pin would stop `make book` there."""
    from importlib import metadata

    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    project = tomllib.loads((layout.ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    pins = {
        (canonicalize_name(name), version)
        for name, version in (line.split("==") for line in requirement_lines("constraints.txt"))
    }
    needs = {
        found.name: found.metadata.get("Requires-Python") or ""
        for found in metadata.distributions()
        if (canonicalize_name(found.name), found.version) in pins
    }
    assert len(needs) > 100, "too few of the pins are installed to say anything"
    too_new = {name: need for name, need in needs.items() if not SpecifierSet(need).contains(oldest)}
    assert not too_new


def test_make_installs_only_what_is_pinned():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    assert "pip install --quiet --disable-pip-version-check -c constraints.txt" in makefile
    for arguments in re.findall(r"^\t\$\(PIP\) (.+)$", makefile, re.MULTILINE):
        plain = re.sub(r"-r requirements[\w-]*\.txt|--no-deps --editable \.", "", arguments)
        assert not plain.strip(), f"not from a requirements file: {plain.strip()}"


def test_the_site_needs_no_torch():
    names = " ".join(requirement_lines("requirements-book.txt")).lower()
    assert "torch" not in names and "diffusers" not in names


def test_requirements_are_bounds_and_no_pins():
    """Installing the package must not replace what Colab brings; whether the bounds admit it is seen by the weekly job there."""
    from packaging.requirements import Requirement

    for line in requirement_lines("requirements.txt"):
        assert "==" not in line and Requirement(line).specifier, f"{line}: bounds, no pin"


def test_a_plain_install_brings_weights_and_all_modules(tmp_path):
    root = copy_of_the_project(tmp_path / "source")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(tmp_path),
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    for path in layout.package_files():
        assert path.relative_to(layout.ROOT).as_posix() in inside, f"{path.name} is not installed"


# --- workflows ---


def test_the_site_is_published_after_the_tests():
    """GitHub finds the workflow to wait for by its name alone: after a renaming nothing would be published any more."""
    import yaml

    folder = layout.ROOT / ".github" / "workflows"
    publish, tests = (yaml.safe_load((folder / name).read_text(encoding="utf8")) for name in ("publish.yml", "test.yml"))
    trigger = publish[True]["workflow_run"]  # YAML reads the key `on` as true
    assert trigger["workflows"] == [tests["name"]]
    assert trigger["branches"] == tests[True]["push"]["branches"]
    assert publish["jobs"]["deploy"]["needs"] == "build"


# --- versions and releases ---


def test_all_places_agree_on_the_version():
    version = layout.version()
    assert version == importlib.import_module("diffusion_core").__version__
    places = {
        "CITATION.cff": rf"^version: {re.escape(version)}$",
        "README.md": rf"@v{re.escape(version)}\"",
        "book/reference/changelog.md": rf"\A[^#]*# Changelog\n[^#]*\n## {re.escape(version)}$",
    }
    for where, pattern in places.items():
        text = (layout.ROOT / where).read_text(encoding="utf8")
        assert re.search(pattern, text, re.MULTILINE), f"{where} does not name version {version}"


def tagging():
    """The shell lines with which the workflow of the tests sets the tag that the chapters install."""
    import yaml

    workflow = yaml.safe_load((layout.ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf8"))
    job = workflow["jobs"]["tag"]
    assert job["needs"] == "test" and job["permissions"] == {"contents": "write"}
    assert "refs/heads/main" in job["if"] and "push" in job["if"]
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("git"), reason="needs bash and git")
def test_the_tag_that_the_chapters_install_is_set_once(tmp_path):
    script, tag = tagging(), f"v{layout.version()}"
    assert not re.search(r"\d+\.\d+", script), "the version stands in diffusion_core/__init__.py alone"
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def run(*command):
        identity = {f"GIT_{who}_{what}": "nobody@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | identity
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    subprocess.run(["git", "init", "--quiet", "--bare", origin], check=True)
    subprocess.run(["git", "clone", "--quiet", origin, clone], check=True, capture_output=True)
    for name in ("tools/__init__.py", "tools/layout.py", "diffusion_core/__init__.py"):
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copy(layout.ROOT / name, clone / name)
    tagged = []
    for message in ("first", "second"):
        run("git", "add", ".")
        run("git", "commit", "--quiet", "--allow-empty", "--message", message)
        run("bash", "-euo", "pipefail", "-c", script)
        assert run("git", "ls-remote", "--tags", "origin").split()[1:] == [f"refs/tags/{tag}"]
        tagged.append(run("git", "rev-parse", tag))
    assert tagged[0] == tagged[1], "a tag never moves"


# --- words ---


def test_the_text_keeps_its_promises():
    """No hand-waving, nothing left to do, nothing that only exists on one machine."""
    forbidden = re.compile(
        r"it can be shown|it is easy to see|[Oo]bviously|[Tt]rivially|needless to say|\bTODO\b|\bFIXME\b|/root/|/home/\w|(?<![\w.])/work/|\.\./shared"
    )
    for path in address.text_files():
        if path.suffix in {".md", ".ipynb", ".py", ".yml", ".toml", ".cff"} and path.name not in {
            "test_site.py"
        }:
            for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), 1):
                if '"image/' in line:
                    continue
                match = forbidden.search(line)
                assert not match, f"{path.relative_to(layout.ROOT)}:{number}: {match.group()!r}"


def test_make_help_names_every_target():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split()
    for target in set(phony) - {"clean", "help"}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), (
            f"{target} has no description"
        )
    for module in re.findall(r"-m (tools\.\w+)", makefile):
        assert (layout.ROOT / f"{module.replace('.', '/')}.py").is_file(), (
            f"the Makefile runs {module}, which does not exist"
        )


def test_the_readme_says_every_command_without_make():
    makefile = (layout.ROOT / "Makefile").read_text(encoding="utf8")
    readme = (layout.ROOT / "README.md").read_text(encoding="utf8")
    said = {name: without for name, without in re.findall(r"^\| `make (\w+)[^`]*` \| (.+?) \| ", readme, re.MULTILINE)}
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split()
    assert set(said) == set(phony) - {"help"}
    recipes = {name: body for name, body in re.findall(r"^(\w+):.*##.*\n((?:\t.+\n?)*)", makefile, re.MULTILINE)}
    for name, without in said.items():
        recipe = recipes[name].replace("$(BOOK)", "$(PY) -m tools.book").replace("$(PORT)", "8000")
        modules = re.findall(r"\$\(PY\) (-m [\w.]+)", recipe)
        assert re.findall(r"python (-m [\w.]+)", without) == modules, f"make {name}"


def test_ruff_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=layout.ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:]
