"""Microbenchmarks, and the tool that trains the tiny model.

case: what is measured. suite: the cases of every op, from one module per op. measure: checks the
outputs, then times the implementations with `timing` and relates them to the ceilings of `limits`.
results: the result file. compare: compares two of them.
"""
