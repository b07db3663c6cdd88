"""Sweeps: many settings of each optimizer, on any number of machines, the best over seeds."""
