"""Microbenchmarks, and the tool that trains the tiny model.

case: what is measured. suite: the cases of every op, one module an op. measure: checks outputs,
then times them with `timing`, against the ceilings of `limits`. results: the file. compare: two
files.
"""
