"""The report page: facts and answers from the records, charts (drawing), the lineage (diagram), the page itself."""
