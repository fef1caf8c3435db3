"""``mode=export``: a trained network as a file that needs neither this package nor, as ONNX, torch."""
