"""Ctrl-C at every line: a KeyboardInterrupt raised before the n-th line of some files runs."""

import sys
from contextlib import contextmanager, suppress


@contextmanager
def interrupted_at(number, files):
    """Raise KeyboardInterrupt in the block before line `number` (from 0) of code in `files` runs.

    Gives a list, in which the line stands once it was reached.
    """
    reached, lines = [], iter(range(sys.maxsize))

    def trace(frame, event, _argument):
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line" and not reached and next(lines) == number:
            reached.append((frame.f_code.co_name, frame.f_lineno))
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)


def at_every_line(files, act):
    """Yield the place of each interruption of `act()`, after it; until `act` runs to its end."""
    for number in range(sys.maxsize):
        with interrupted_at(number, files) as reached, suppress(KeyboardInterrupt):
            act()
        if not reached:
            return
        yield reached[0]
