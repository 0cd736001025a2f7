"""The sections of `experiments/throughput.py`, one file each, and their clock.

A section has `Options`, what it reads of the command line; `SMOKE`, the options
that make it a matter of seconds; `UNIT`, of its ratios; `check_options`; and
`measure(options) -> rows`.
"""
