"""Takes all calibration samples down a chain together: statistics, choice of precisions, schedule."""
