"""What the tests cannot import on this machine is not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["src/bnkit/kernels/gpu/*", "*/gpu_*.py"]
