"""The arithmetic of batch norm: one specification, and the kernels that are tested against it.

`reference` is the specification. Every kernel module takes the same arguments in the same three
functions: `batch_norm_forward`, `batch_norm_inference`, and `batch_norm_backward` of either. A
kernel module is imported only when it is chosen.
"""
