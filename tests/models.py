"""Awkward models, each with the reason why it is there.

Add a model to the file of `tests/zoo` that fits its reason; whatever changes or watches models is
tested on all of them.
"""

from zoo import (  # noqa: F401  they fill the catalogue
    architectures,
    calling,
    layers,
    normalised,
    outputs,
    sequences,
    sharing,
)
from zoo.catalogue import CATALOGUE

MODELS = tuple(sorted(CATALOGUE, key=str))  # in whichever order the files were imported
