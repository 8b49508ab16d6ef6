"""Requests of persons to be forgotten: find the rows about them, and find out whether a model remembers these."""
