"""TensorRT in two flavours: engines built in a child process, cached, and run from shared device buffers."""
