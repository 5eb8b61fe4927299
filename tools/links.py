"""Follow every link of the built site: `python -m tools.links _build/html`. Links inside the site are a test's part; this one asks the network.

A link counts as broken if its server says so (404, 410) or does not exist, twice. Servers that
merely refuse robots, or do not answer in time, are listed, and pass.
"""

import argparse
import concurrent.futures
import http.client
import socket
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

from tools import layout

AGENT = "Mozilla/5.0 (compatible; link check of a book; weekly)"
GONE = {404, 410}


class Links(HTMLParser):
    """The outward links of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        href = dict(attributes).get("href") or ""
        if tag == "a" and href.startswith("http"):
            self.found.add(href.split("#")[0])


def collect(folder):
    """{link: pages that hold it}, without the links to the repository itself, which may not be public yet."""
    own = layout.config()["repository"]["url"]
    colab = own.replace("https://github.com", "https://colab.research.google.com/github")
    links = {}
    for path in sorted(Path(folder).rglob("*.html")):
        for url in Links(path.read_text(encoding="utf8")).found:
            if not url.startswith((own, colab)):
                links.setdefault(url, []).append(path.relative_to(folder).as_posix())
    return links


def ask(url):
    """ "ok", "refused: why" or "broken: why"."""
    for attempt in range(2):
        try:
            request = urllib.request.Request(url, headers={"User-Agent": AGENT})
            with urllib.request.urlopen(request, timeout=30):
                return "ok"
        except urllib.error.HTTPError as error:
            result = f"{'broken' if error.code in GONE else 'refused'}: {error.code}"
        except urllib.error.URLError as error:
            gone = isinstance(error.reason, socket.gaierror)
            result = f"{'broken' if gone else 'refused'}: {error.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            result = f"refused: {error}"
        if attempt == 0:
            time.sleep(5)
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the built site")
    links = collect(parser.parse_args().folder)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = dict(zip(links, pool.map(ask, links), strict=True))
    for url, result in sorted(results.items()):
        if result != "ok":
            print(f"{result:<30} {url}   (on {', '.join(links[url][:3])})")
    broken = [url for url, result in results.items() if result.startswith("broken")]
    print(f"{len(links)} links, {len(broken)} broken")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
