"""What the tests cannot import on this machine is not collected, and which backend Keras has."""

import os
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras reads it when it is imported

collect_ignore_glob = []
if not find_spec("triton"):
    collect_ignore_glob += ["src/bnkit/kernels/gpu/*", "*/gpu_*.py"]
if not find_spec("keras"):
    collect_ignore_glob += ["src/bnkit/keras/*", "tests/keras/*"]
