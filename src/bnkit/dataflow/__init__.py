"""Who feeds whom in a model, seen at run time: no symbolic tracing, so any Python will do."""

from bnkit.dataflow.calls import Call, Dataflow, Value
from bnkit.dataflow.copying import duplicate, whole
from bnkit.dataflow.tracing import ExampleError, as_call, observe, observe_in_training, trace

__all__ = [
    "Call",
    "Dataflow",
    "ExampleError",
    "Value",
    "as_call",
    "duplicate",
    "observe",
    "observe_in_training",
    "trace",
    "whole",
]
