"""Sweeps: isolated jobs that share the devices of a machine, in a folder that can be resumed."""
