"""Files to documents, records and scenarios; what cannot be read is named by its place."""
