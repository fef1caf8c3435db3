"""Large loads: generated, measured, and compared with bounds; see `tools.load.__main__`."""
