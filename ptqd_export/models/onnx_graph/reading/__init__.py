"""From an ONNX file to a list of plain nodes and constants: read as an untrusted file, folded, and simplified."""
