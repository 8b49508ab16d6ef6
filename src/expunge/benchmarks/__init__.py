"""Benchmarks, one file each: generated, public, or your own rows."""
