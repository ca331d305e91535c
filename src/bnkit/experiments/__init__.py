"""The experiments: data, networks, one plain training loop, and honest statistics."""
