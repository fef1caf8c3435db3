"""Fuzzing of the readers of files; see `tools.fuzz.__main__`."""
