"""The report page: facts and answers from the records, charts (drawing), the lineage, the page itself."""
