"""The figures of `ptqd-run evaluate`, on arrays alone."""
