"""From sources to rows: readers, screening, near-duplicates, and the writer of a dataset package."""
