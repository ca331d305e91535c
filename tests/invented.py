"""Invented runs, to show which verdict follows from which evidence."""


def invented_run(*, reached=None, accuracy=0.97, length=100, diverged=False):
    """Return a run measured every 10 steps: at `accuracy` from step `reached` on, at chance before.

    One that never gets there (None) ends at chance.
    """
    steps = list(range(10, length + 1, 10))
    accuracies = [accuracy if reached and step >= reached else 0.1 for step in steps]
    return {
        "length": length,
        "steps": steps[:1] if diverged else steps,
        "accuracies": accuracies[:1] if diverged else accuracies,
        "test": accuracies[-1],
        "diverged": diverged,
    }
