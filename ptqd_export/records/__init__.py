"""Files of a bundle that only the exporter reads and writes."""
