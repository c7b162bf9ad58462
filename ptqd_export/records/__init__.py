"""Bundle files that only the exporter reads and writes."""
