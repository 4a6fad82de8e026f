"""Sums of constants are done once, not at every token."""

from kdexport.export.draft import Draft


def folded_weights(draft: Draft) -> None:
    """Add(weight, constant) -> the summed weight.

    Norms of the Gemma families multiply with 1 + weight.
    """
    kept = []
    for node in draft.graph.node:
        if node.op_type == "Add" and all(name in draft.weights for name in node.input):
            left, right = (draft.weights[name] for name in node.input)
            draft.weights[node.output[0]] = left + right
        else:
            kept.append(node)
    draft.set_nodes(kept)
