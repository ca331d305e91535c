"""What users bring to a comparison: small networks and loaders of their own, each for a reason."""

import os
import random
import signal
import sys
import threading
import time
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
TRAIN, TEST = (X[:120], Y[:120]), (X[120:], Y[120:])


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def build_with_dropout():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


def cut(examples, size=20):
    return list(zip(*(part.split(size) for part in examples), strict=True))


def loaders():
    return cut(TRAIN), cut(TEST)


class Shuffled:
    """Batches in an order that `draw` makes anew in each epoch, as people's own loaders do."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        order = torch.as_tensor(self.draw(len(TRAIN[1])))
        return iter(cut([part[order] for part in TRAIN]))


def shuffled_by_torch():
    return Shuffled(torch.randperm), cut(TEST)


def shuffled_by_numpy():
    return Shuffled(np.random.permutation), cut(TEST)


def shuffled_by_python():
    return Shuffled(lambda count: random.sample(range(count), count)), cut(TEST)


def data_loaders():
    train = DataLoader(TensorDataset(*TRAIN), batch_size=20, shuffle=True)
    return train, DataLoader(TensorDataset(*TEST), batch_size=30, shuffle=True)


def endless_generator():
    def noisy():
        while True:
            for inputs, targets in cut(TRAIN):
                yield inputs + 0.1 * torch.randn(inputs.shape), targets

    return noisy(), cut(TEST)


SHUFFLING = (
    shuffled_by_torch,
    shuffled_by_numpy,
    shuffled_by_python,
    data_loaders,
    endless_generator,
)


# Loaders that end the process they are in, unless it is the one that planned: out of memory


def in_a_worker():
    return current_process().name != "MainProcess"


def dying(*, always=(), once=(), folder=None):
    """Return loaders that kill their process under these seeds, or leave it at the first time."""

    def loaders_that_die():
        seed = torch.initial_seed()
        if in_a_worker() and seed in always:
            os._exit(9)
        if in_a_worker() and seed in once and not (folder / f"died-{seed}").exists():
            (folder / f"died-{seed}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loaders()

    return loaders_that_die


KEPT = []


def growing(folder):
    """Return loaders that note their process and keep 400 MB in it, as a cache of images does."""

    def loaders_that_stay():
        if in_a_worker():
            import users  # noqa: PLC0415  the module of the process, not what was sent

            with (folder / "processes").open("a") as file:
                file.write(f"{os.getpid()}\n")
            users.KEPT.append(b"x" * 400_000_000)
            time.sleep(1.2)  # loky looks once a second
        return loaders()

    return loaders_that_stay


def is_run_apart(test):
    """Return whether this is what a worker of a cluster started for one trial, not the `test`.

    `test` is the number of the process that runs the test: pytest-xdist's begin as trials' do.
    """
    started = "bnkit.experiments.workers" in sys.modules and "-c" in sys.argv[:1]
    return started and os.getpid() != test


def dying_apart(*, seed):
    """Return loaders that kill the process of a cluster's trial under this seed."""
    test = os.getpid()

    def loaders_that_die():
        if is_run_apart(test) and torch.initial_seed() == seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return loaders()

    return loaders_that_die


def killing_what_runs_it(folder):
    """Return loaders that kill, once, the worker of a cluster that runs the trial of seed 0."""
    test = os.getpid()

    def loaders_that_kill():
        if is_run_apart(test) and torch.initial_seed() == 0 and not (folder / "killed-0").exists():
            (folder / "killed-0").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return data_loaders()

    return loaders_that_kill


def leaving_a_thread():
    """Return loaders, and leave a thread behind that keeps its process from ending."""
    if in_a_worker():
        threading.Thread(target=time.sleep, args=(3600,)).start()
    return loaders()


def stuck_at_the_second_seed():
    """Return loaders, but in a worker under the second seed only once the file `go` is there."""
    while in_a_worker() and torch.initial_seed() == 1 and not Path("go").exists():
        time.sleep(0.05)
    return data_loaders()
