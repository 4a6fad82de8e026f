"""From a teacher and pairs of texts to a trained student: needs torch and transformers, knows no ONNX."""
