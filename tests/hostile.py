"""Files that would run code if they were unpickled: it makes a folder that a test looks for."""

import io
import json
import os
import pickle
import zipfile

import torch
from torch import nn


class Exploit:
    """An object whose pickle, when it is read, makes the folder `marker`."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pickled(marker):
    return pickle.dumps(Exploit(marker))


def saved_by_torch(marker):
    """Return the bytes of torch.save of an exploit."""
    file = io.BytesIO()
    torch.save(Exploit(marker), file)
    return file.getvalue()


def program(path, *, training=False):
    """Write an exported program with a batch norm to `path`; return the names of its members."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).train(training)
    torch.export.save(torch.export.export(model, (torch.ones(8, 4),)), path)
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def graph_in(path):
    """Return the member of the archive that holds the graph, as JSON."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        return archive.read(name)


def rewritten(path, change):
    """Write each member anew: `change(name, content)` is its content, None for one to leave out."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)


def all_weights_pickled(name, content):
    """Return the content of a member; a list of weights or constants calls all of them pickled."""
    if not name.endswith("_config.json"):
        return content
    listed = json.loads(content)
    for entry in listed["config"].values():
        entry["use_pickle"] = True
    return json.dumps(listed).encode()
