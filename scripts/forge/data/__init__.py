"""Rows of documents, scenarios and records; near-duplicates, splits, and the writer of a dataset package."""
