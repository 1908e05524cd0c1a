"""Training: from checked rows to an adapter, stage after stage."""
