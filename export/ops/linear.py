"""Bodies of the linear layers, as ONNX text.

In half precision they are ops of their own for the sake of GPUs, where a layer's bias, GELU and
residual can be part of the matrix product's kernel: apart, they read and write all tokens again.
`tokenfold.export.graphs.linear` makes them from a traced graph.
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
