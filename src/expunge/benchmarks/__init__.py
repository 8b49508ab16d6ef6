"""The benchmarks, one file each: its keys, its data, its metrics and its axes. A file that is added is found."""

from expunge.benchmarks.base import BenchmarkConfig

__all__ = ["BenchmarkConfig"]
