"""Where readers find the project: its address, its version, and what Colab needs of both."""

import re
from pathlib import Path

from tools.layout import PACKAGE, ROOT


def config():
    """`_config.yml` as a dictionary."""
    import yaml

    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))


def version():
    """The package's version, read from its source; releases carry the tag `v` + version."""
    match = re.search(
        r'^__version__ = "([^"]+)"',
        (PACKAGE / "__init__.py").read_text(encoding="utf8"),
        re.MULTILINE,
    )
    return match.group(1)


def colab_link(path):
    """The address at which Colab opens a chapter."""
    repository = config()["repository"]
    where = Path(path).resolve().relative_to(ROOT).as_posix()
    return f"{repository['url'].replace('https://github.com', 'https://colab.research.google.com/github')}/blob/{repository['branch']}/{where}"


def colab_cell(extra=""):
    """The first code cell of every chapter: it does nothing unless the chapter runs in Colab."""
    return (
        "#@title Set-up (does something only in Colab)\n"
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f'    %pip install --quiet "diffusion-core{extra} @ git+{config()["repository"]["url"]}@v{version()}"'
    )
