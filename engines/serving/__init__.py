"""A bundle behind HTTP, on Ray Serve: `ptqd-run serve`."""
