"""The site: builds without a warning, one page per entry, nothing from elsewhere, no dead link."""

import re
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tools import address, book, layout

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
        assert address.colab_link(path) in links, f"{built.name}: no Colab link"
        assert any(path.name in url and "_sources" in url for url in links), (
            f"{built.name}: no download"
        )
        assert any("/edit/" in url for url in links), f"{built.name}: no edit link"


def test_search_finds_the_pages(site):
    index = (site / "searchindex.js").read_text(encoding="utf8")
    for entry in layout.toc_entries():
        assert f'"{entry}"' in index
