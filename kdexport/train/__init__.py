"""From a teacher and pairs of texts to a trained student. Needs torch and transformers."""

import os

# Has PyTorch ask for large tensors in huge pages, which are quicker to get.
# It looks before it makes its first one.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
