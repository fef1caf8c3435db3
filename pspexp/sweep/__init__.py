"""Sweeps: jobs that know of each other, survive each other, and can be gone on with."""
