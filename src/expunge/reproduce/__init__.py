"""`expunge reproduce`: a table or a figure of a paper. Missing runs are made, finished ones kept.

A reproduction is a YAML file: `definition` says what it may hold and which recipes follow from it, `jobs` what of them
is done and how the rest is run, `page` what is written. None of them knows how a number comes about.
"""

from expunge.reproduce.definition import Reproduction
from expunge.reproduce.jobs import carry_out, missing
from expunge.reproduce.page import write

__all__ = ["Reproduction", "carry_out", "missing", "write"]
