"""Distributed work with Ray. Ray is imported only when a cluster is requested."""
