"""Old public names: they work for one more release, and say what replaces them."""

import warnings


def warn_of(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that the name `old` is now `new`; the warning points at who called the caller.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of("Diagnosis.mended", "Diagnosis.fixed")
    >>> print(caught[0].message)
    `Diagnosis.mended` is now called `Diagnosis.fixed`; the old name goes with the next release
    """
    warnings.warn(
        f"`{old}` is now called `{new}`; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
