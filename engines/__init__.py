"""The run time: samplers, corrections, engines swapped across timesteps, `ptqd-run`. Imports neither torch nor onnx."""
