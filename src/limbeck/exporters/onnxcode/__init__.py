"""What the ONNX targets write: graphs and the layers in them."""
