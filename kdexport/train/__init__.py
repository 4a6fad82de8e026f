"""From a teacher and pairs of texts to a trained student. Needs torch and transformers."""
