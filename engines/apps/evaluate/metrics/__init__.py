"""The figures of `ptqd-run evaluate`, computed from arrays alone."""
