"""Faults, planned and repeated; see `tools.soak.__main__`."""
