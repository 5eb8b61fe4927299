"""One version and one tag; a site that is published after the tests."""

import importlib
import os
import re
import shutil
import subprocess

import pytest

from tools import address, layout


def test_the_site_is_published_after_the_tests():
    """GitHub finds the workflow to wait for by its name alone: after a renaming nothing would be published any more."""
    import yaml

    folder = layout.ROOT / ".github" / "workflows"
    publish, tests = (
        yaml.safe_load((folder / name).read_text(encoding="utf8"))
        for name in ("publish.yml", "test.yml")
    )
    trigger = publish[True]["workflow_run"]  # YAML reads the key `on` as true
    assert trigger["workflows"] == [tests["name"]]
    assert trigger["branches"] == tests[True]["push"]["branches"]
    assert publish["jobs"]["deploy"]["needs"] == "build"


def test_all_places_agree_on_the_version():
    version = address.version()
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

    workflow = yaml.safe_load(
        (layout.ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf8")
    )
    job = workflow["jobs"]["tag"]
    assert job["needs"] == "test" and job["permissions"] == {"contents": "write"}
    assert "refs/heads/main" in job["if"] and "push" in job["if"]
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.skipif(
    not shutil.which("bash") or not shutil.which("git"), reason="needs bash and git"
)
def test_the_tag_that_the_chapters_install_is_set_once(tmp_path):
    script, tag = tagging(), f"v{address.version()}"
    assert not re.search(r"\d+\.\d+", script), (
        "the version stands in diffusion_core/__init__.py alone"
    )
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def run(*command):
        identity = {
            f"GIT_{who}_{what}": "nobody@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | identity
        done = subprocess.run(
            command, cwd=clone, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    subprocess.run(["git", "init", "--quiet", "--bare", origin], check=True)
    subprocess.run(["git", "clone", "--quiet", origin, clone], check=True, capture_output=True)
    for name in (
        "tools/__init__.py",
        "tools/layout.py",
        "tools/address.py",
        "diffusion_core/__init__.py",
    ):
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
