"""The rules for Keras models, one function each."""
