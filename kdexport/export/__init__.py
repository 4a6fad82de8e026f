"""From a trained model to a bundle: graph, quantization, parity. Needs onnx, mobius and torch."""
