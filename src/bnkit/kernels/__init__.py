"""The arithmetic of batch norm: one specification, and the kernels that are tested against it.

`reference` is the specification. Every kernel module offers the same four functions with the same
signatures: `batch_norm_forward`, `batch_norm_backward`, `batch_norm_inference` and
`batch_norm_inference_backward`. A kernel module is imported only when it is chosen.
"""
