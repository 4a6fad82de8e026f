"""Embeddings scaled as the model itself says, which the graph builder rounds."""

import numpy as np

from kdexport.export.draft import Draft


def own_embedding(draft: Draft, scale: float | None) -> None:
    """Mul(Gather(E, input_ids), constant) -> Mul(Gather(E, input_ids), scale)."""
    look_up = next((node for node in draft.graph.node if "input_ids" in node.input), None)
    if scale is None or look_up is None:
        return
    for node in draft.readers(look_up.output[0]):
        if node.op_type == "Mul" and node.input[1] in draft.weights:
            name = "kdexport.embedding_scale"
            draft.weights[name] = np.asarray(scale, dtype=np.float32)
            node.input[1] = name
