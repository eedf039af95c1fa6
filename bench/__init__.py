"""Microbenchmarks, and the tool that trains the tiny model."""
