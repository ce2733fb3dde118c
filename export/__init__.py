"""Checkpoint to ONNX to engine, with a gate that refuses a file which scores differently."""
