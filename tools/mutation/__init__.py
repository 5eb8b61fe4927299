"""Bugs put into the package mechanically, and what was found with them; `python -m tools.mutate` runs them."""
