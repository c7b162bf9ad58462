"""The exporter: plan, model loading, tracing, Q/DQ graphs, the build, `ptqd-export`."""
