"""Rows of documents, scenarios and records: free of evaluation sets, split without near-duplicates, written, cached."""
