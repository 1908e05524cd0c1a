"""Weights one at a time: read from a base, merged with an adapter, written, and run."""
