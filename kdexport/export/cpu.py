"""Which kernels a quantized graph's products run on, for the manifest.

Knows the nodes that `kdexport.export.kernels` writes; not where they are right or quick
(`kdexport.runtime.cpu` does).
"""

import numpy as np
import onnx

from kdexport.bundle import CpuFacts
from kdexport.export.draft import Draft
from kdexport.runtime.cpu import cpu_class
from kdexport.system.machine import cpu_features


def cpu_facts(draft: Draft) -> CpuFacts:
    """This CPU's class, and the kernels of all products but the head, which reads few tokens."""
    kernels = {_kernel(draft, node) for node in draft.graph.node if "logits" not in node.output}
    made_on = cpu_class(cpu_features())
    return CpuFacts(made_on=made_on, kernels=sorted(kernels - {""}))


def _kernel(draft: Draft, node: onnx.NodeProto) -> str:
    """A name of `CpuFacts`; empty for a node that is no quantized product."""
    if node.op_type == "MatMulNBits":
        return "block" + str(next(a.i for a in node.attribute if a.name == "bits"))
    if node.op_type == "MatMulIntegerToFloat":
        return "rows8" if draft.weights[node.input[1]].dtype == np.int8 else "rows8u"
    return ""
