"""Predicting what a config needs of a machine: memory, disk and time, before any of it is spent."""
