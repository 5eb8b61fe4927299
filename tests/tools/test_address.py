"""The repository's address: it stands in several places, which agree; one documented line changes them all."""

import json
import re
import subprocess

from tests.tools.files import copy_of_the_project, text_files
from tools import address, layout

OWNER, NAME = address.config()["repository"]["url"].rsplit("/", 2)[1:]


def assert_all_agree(root, owner, name):
    places = {
        "pyproject.toml": f"https://github.com/{owner}/{name}",
        "CITATION.cff": f"https://github.com/{owner}/{name}",
        "README.md": f"https://github.com/{owner}/{name}",
        "_config.yml": f"https://{owner.lower()}.github.io/{name}/",
        "book/index.md": f"git clone https://github.com/{owner}/{name}",
        "tools/template.ipynb": f"colab.research.google.com/github/{owner}/{name}",
    }
    for where, text in places.items():
        assert text in (root / where).read_text(encoding="utf8"), f"{where} lacks {text}"
    others = re.compile(r"github\.com/(?:github/)?([\w-]+)/" + re.escape(name))
    for path, text in text_files(root).items():
        assert set(others.findall(text)) <= {owner, "github"}, path


def test_all_places_agree_on_the_address():
    assert_all_agree(layout.ROOT, OWNER, NAME)


def test_the_documented_line_changes_the_address_everywhere(tmp_path):
    root = copy_of_the_project(tmp_path)
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf8")
    line = re.search(r"## The repository's address\n.*?```bash\n(.+?)\n```", text, re.DOTALL).group(
        1
    )
    line = line.replace("you/yours", "Somebody/a-fork").replace(
        "you.github.io/yours", "somebody.github.io/a-fork"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=root, check=True)
    assert_all_agree(root, "Somebody", "a-fork")
    assert [
        str(path)
        for path, text in text_files(root).items()
        if f"{OWNER}/{NAME}" in text or f"{OWNER}.github.io" in text
    ] == []
    for path in root.rglob("*.ipynb"):
        json.loads(path.read_text(encoding="utf8"))
