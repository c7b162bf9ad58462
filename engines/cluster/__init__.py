"""The same work on many machines, by Ray: which is imported only where a cluster is asked for."""
