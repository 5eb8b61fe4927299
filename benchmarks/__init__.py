"""Measurements too long for a chapter: each command writes JSON with its provenance."""
