"""Bodies of the linear layers, as ONNX text.

Linear layers in half precision are single ops for GPUs, where bias, GELU and residual can be part
of the matrix product's kernel. As separate nodes, each reads and writes all tokens again.
`tokenfold.export.graphs.linear` fuses the layers of a traced graph.
"""

from __future__ import annotations

LINEAR = """
    product = MatMul(x, w)
    y = Add(product, bias)
"""

LINEAR_GELU = """
    product = MatMul(x, w)
    biased = Add(product, bias)
    y = Gelu(biased)
"""

LINEAR_ADD = """
    product = MatMul(x, w)
    biased = Add(product, bias)
    y = Add(residual, biased)
"""
