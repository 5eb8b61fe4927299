"""The project's own commands; run them from the repository's root as `python -m tools.NAME`."""
