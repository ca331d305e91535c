"""The rules of the diagnosis: a short function each, in the file of its kind, listed in `table`."""
