import functools
import gzip
import hashlib
import http.server
import itertools
import os
import pickle
import re
import struct
import threading
from pathlib import Path

import pooch
import pytest
import torch
from rich.progress import Progress

from bnkit.experiments import data, mnist_files
from bnkit.experiments.data import (
    Examples,
    batches,
    fingerprint_of,
    load,
    ordered_batches,
)
from bnkit.experiments.mnist_files import FILES, DataError

BESIDE_THE_REPOSITORY = Path(__file__).parents[2].parent / "shared" / "data"
FOLDER = Path(os.environ.get("BNKIT_DATA", BESIDE_THE_REPOSITORY))
needs_files = pytest.mark.skipif(
    not all((FOLDER / name).is_dir() for name in ("mnist", "fashion-mnist")),
    reason="no folders mnist and fashion-mnist: name the folder that holds both in BNKIT_DATA",
)

# Label counts 0 to 9 of the published files.
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module", autouse=True)
def _memory_given_back():
    yield
    data._published.cache_clear()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count):
    """Examples whose only pixel is their number."""
    return Examples(torch.arange(float(count))[:, None, None, None], torch.arange(count))


def targets_of(iterator, count):
    return [targets.tolist() for _, targets in itertools.islice(iterator, count)]


# The files of a published set


@needs_files
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_sets_have_their_sizes_types_and_range(name):
    loaded = load(name, folder=FOLDER)
    parts = [loaded.train, loaded.validation, loaded.test]
    assert [len(part) for part in parts] == [55_000, 5_000, 10_000]
    assert loaded.held_out is loaded.validation
    assert (loaded.input_shape, loaded.classes, loaded.name) == ((1, 28, 28), 10, name)
    for part in parts:
        assert part.inputs.shape == (len(part), 1, 28, 28)
        assert (part.inputs.dtype, part.targets.dtype) == (torch.float32, torch.int64)
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)


@needs_files
def test_mnist_has_its_published_labels_and_moments():
    mnist = load("mnist", folder=FOLDER)
    together = torch.cat([mnist.validation.targets, mnist.train.targets]).bincount()
    assert together.tolist() == MNIST_TRAIN
    assert mnist.test.targets.bincount().tolist() == MNIST_TEST
    pixels = torch.cat([mnist.validation.inputs, mnist.train.inputs])
    std, mean = torch.std_mean(pixels)
    assert (mean.item(), std.item()) == pytest.approx((0.1307, 0.3081), abs=5e-5)


@needs_files
def test_validation_is_the_first_five_thousand_training_images():
    raw = gzip.decompress((FOLDER / "mnist" / FILES[0]).read_bytes())[16:]
    mnist = load("mnist", folder=FOLDER)
    side = 28 * 28
    for place, image in [
        (0, mnist.validation.inputs[0]),
        (4_999, mnist.validation.inputs[-1]),
        (5_000, mnist.train.inputs[0]),
        (59_999, mnist.train.inputs[-1]),
    ]:
        expected = [byte / 255 for byte in raw[place * side : (place + 1) * side]]
        torch.testing.assert_close(image.flatten(), torch.tensor(expected), rtol=1e-6, atol=0)


@needs_files
def test_the_two_sets_differ_though_their_files_are_named_alike():
    assert (
        load("mnist", folder=FOLDER).fingerprint != load("fashion-mnist", folder=FOLDER).fingerprint
    )
    message = f"{FILES[0]} is not the published file"
    with pytest.raises(DataError, match=message):
        load("mnist", folder=FOLDER / "fashion-mnist")


def idx(shape, values):
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + bytes(values)


def tiny_files():
    """Twelve images to train on (five of them for validation) and four to test on, of 2×3."""
    return {
        FILES[0]: gzip.compress(idx((12, 2, 3), range(72)), mtime=0),
        FILES[1]: gzip.compress(idx((12,), range(12)), mtime=0),
        FILES[2]: gzip.compress(idx((4, 2, 3), range(24)), mtime=0),
        FILES[3]: gzip.compress(idx((4,), range(4)), mtime=0),
    }


def publish(monkeypatch, files):
    digests = tuple(hashlib.sha256(files[file]).hexdigest() for file in FILES)
    monkeypatch.setitem(mnist_files.SHA256, "mnist", digests)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


@pytest.fixture
def files(monkeypatch):
    """Tiny published files, with nothing cached and no folder in the environment."""
    files = tiny_files()
    publish(monkeypatch, files)
    monkeypatch.setattr(data, "VALIDATION", 5)
    monkeypatch.setattr(data, "_published", functools.cache(data._published.__wrapped__))
    monkeypatch.delenv("BNKIT_DATA", raising=False)
    return files


@pytest.mark.parametrize("below", ["", "mnist"])
def test_files_lie_in_the_folder_or_in_its_subfolder_of_their_name(files, tmp_path, below):
    write(tmp_path / below, files)
    tiny = load("mnist", folder=tmp_path)
    assert tiny.input_shape == (1, 2, 3)
    assert tiny.validation.targets.tolist() == [0, 1, 2, 3, 4]
    assert tiny.train.targets.tolist() == [5, 6, 7, 8, 9, 10, 11]
    torch.testing.assert_close(tiny.test.inputs.flatten(), torch.arange(24.0) / 255)


def test_the_environment_names_the_folder_unless_one_is_given(files, tmp_path, monkeypatch):
    write(tmp_path, files)
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path))
    assert len(load("mnist").train) == 7
    with pytest.raises(DataError, match="nowhere does not exist"):
        load("mnist", folder=tmp_path / "nowhere")


def test_a_process_loads_a_set_once(files, tmp_path, monkeypatch):
    write(tmp_path, files)
    once = load("mnist", folder=tmp_path)
    for file in FILES:
        (tmp_path / file).unlink()
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path))
    assert load("mnist", folder=str(tmp_path)) is once
    assert load("mnist") is once


def test_data_survive_pickling(files, tmp_path):
    write(tmp_path, files)
    tiny = load("mnist", folder=tmp_path)
    copy = pickle.loads(pickle.dumps(tiny))
    assert fingerprint_of(copy.train, copy.validation, copy.test) == tiny.fingerprint


def test_an_unknown_name_is_refused_with_near_ones_and_the_list():
    message = (
        "unknown data set 'fasion-mnist': did you mean 'fashion-mnist'? Choose from digits, "
        "fashion-mnist, mnist"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        load("fasion-mnist")


@pytest.mark.usefixtures("files")
def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    message = (
        "gone does not exist: give another as --data-dir or BNKIT_DATA, or neither to download"
    )
    with pytest.raises(DataError, match=message):
        load("mnist", folder=tmp_path / "gone")


def test_a_missing_file_is_refused_with_the_names_of_all_four(files, tmp_path):
    write(tmp_path, files)
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(DataError, match="holds all files of mnist") as refusal:
        load("mnist", folder=tmp_path)
    assert all(file in str(refusal.value) for file in FILES)


def test_a_wrong_checksum_is_refused_with_both_and_what_to_do(files, tmp_path):
    write(tmp_path, files)
    other = gzip.compress(idx((12,), [7] * 12), mtime=0)
    (tmp_path / FILES[1]).write_bytes(other)
    found, expected = (hashlib.sha256(x).hexdigest() for x in (other, files[FILES[1]]))
    message = (
        f"{FILES[1]} is not the published file: its SHA-256 is {found} and should be {expected}; "
        f"replace it by the original, or give no data folder to download it"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        load("mnist", folder=tmp_path)


DAMAGED = [
    pytest.param(tiny_files()[FILES[0]][:-9], "cut short or damaged", id="compressed part missing"),
    pytest.param(b"<html>", "cut short or damaged \\(Not a gzipped file", id="a web page"),
    pytest.param(b"", "cut short or damaged", id="nothing"),
    pytest.param(
        gzip.compress(b"\0\0"), "no idx header with the magic number 2051", id="no header"
    ),
    pytest.param(
        gzip.compress(idx((12,), range(12))), "the magic number 2051", id="labels for images"
    ),
    pytest.param(
        gzip.compress(idx((12, 2, 3), range(71))),
        "71 bytes of data, 72 in the header",
        id="one pixel missing",
    ),
    pytest.param(
        gzip.compress(idx((12, 2, 3), range(73))),
        "73 bytes of data, 72 in the header",
        id="one pixel too many",
    ),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_damaged_file_is_refused_even_if_its_checksum_were_right(
    files, tmp_path, monkeypatch, content, message
):
    files[FILES[0]] = content
    publish(monkeypatch, files)
    write(tmp_path, files)
    with pytest.raises(DataError, match=f"{FILES[0]} is .*{message}.*: replace it by the original"):
        load("mnist", folder=tmp_path)


def test_images_without_labels_are_refused(files, tmp_path, monkeypatch):
    files[FILES[1]] = gzip.compress(idx((11,), range(11)))
    publish(monkeypatch, files)
    write(tmp_path, files)
    with pytest.raises(DataError, match=r"12 images and 11 labels in .* do not match"):
        load("mnist", folder=tmp_path)


# The download, from a server on this machine


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "bnkit" / "mnist"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server for the folder `public`; what it was asked for is in `asked`."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_answer):
            asked.append(self.path)

        def log_message(self, *_message):
            """Print nothing."""

    public = tmp_path / "public"
    public.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(Handler, directory=public)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", public, asked
        running.shutdown()
        thread.join()


def test_files_are_downloaded_once_into_the_cache(files, cache, server, monkeypatch):
    address, public, asked = server
    write(public, files)
    monkeypatch.setitem(mnist_files.MIRRORS, "mnist", (address,))
    tiny = load("mnist")
    assert tiny.train.targets.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files
    assert len(asked) == len(FILES)
    data._published.cache_clear()
    assert load("mnist").fingerprint == tiny.fingerprint
    assert len(asked) == len(FILES)


def test_the_next_mirror_serves_where_one_fails(files, cache, server, monkeypatch):
    address, public, asked = server
    write(public / "good", files)
    write(public / "bad", dict.fromkeys(FILES[:2], b"other bytes"))  # the rest is not found
    monkeypatch.setitem(mnist_files.MIRRORS, "mnist", (address + "bad/", address + "good/"))
    assert len(load("mnist").train) == 7
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files
    assert asked == [f"/{place}/{file}" for file in FILES for place in ("bad", "good")]


def test_the_progress_bar_shows_at_the_first_byte_and_ends_full(server, tmp_path):
    address, public, _ = server
    write(public, {"file": bytes(3000)})
    progress = Progress(disable=True)
    bar = mnist_files._Bar(progress, "file")
    (task,) = progress.tasks
    assert not task.visible
    pooch.HTTPDownloader(progressbar=bar)(f"{address}file", str(tmp_path / "file"), None)
    assert task.visible
    assert task.finished
    assert (task.completed, task.total) == (3000, 3000)


@pytest.mark.usefixtures("files", "cache")
def test_a_download_that_fails_says_what_was_tried_and_what_else_to_do(server, monkeypatch):
    address, _, _ = server
    monkeypatch.setitem(mnist_files.MIRRORS, "mnist", (address, address + "second/"))
    with pytest.raises(DataError, match="as --data-dir or BNKIT_DATA") as failure:
        load("mnist")
    message = str(failure.value)
    assert f"{address}{FILES[0]}: 404" in message
    assert f"{address}second/{FILES[0]}: 404" in message
    assert all(file in message for file in FILES)


@pytest.mark.usefixtures("files", "cache")
def test_a_machine_without_a_network_gets_the_same_advice(monkeypatch):
    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(DataError, match=r"the download failed(?s:.*)no route to host"):
        load("mnist")


@pytest.mark.parametrize("name", mnist_files.SHA256)
def test_each_published_set_has_a_checksum_a_file_and_a_second_mirror(name):
    assert len(mnist_files.SHA256[name]) == len(FILES)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in mnist_files.SHA256[name])
    assert len(mnist_files.MIRRORS[name]) == 2
    assert all(mirror.endswith("/") for mirror in mnist_files.MIRRORS[name])


# Digits


def test_digits_are_split_four_to_one_in_every_class():
    digits = load("digits")
    train, test = (part.targets.bincount(minlength=10) for part in (digits.train, digits.test))
    assert (int(train.sum()), int(test.sum())) == (1437, 360)
    assert ((train + test) / 5 - test).abs().max() < 1
    assert digits.validation is None
    assert digits.held_out is digits.test


def test_digits_are_the_images_of_scikit_learn_each_once():
    from sklearn.datasets import load_digits  # noqa: PLC0415  as in the source

    digits, original = load("digits"), load_digits()
    together = torch.cat([digits.train.inputs, digits.test.inputs]).flatten(1) * 16
    labelled = torch.column_stack(
        [together, torch.cat([digits.train.targets, digits.test.targets])]
    )
    expected = torch.column_stack([torch.tensor(original.data), torch.tensor(original.target)])
    assert sorted(labelled.tolist()) == sorted(expected.tolist())


def test_digits_are_the_same_on_every_machine():
    # Another value means that the split has changed, and with it every result on digits.
    assert load("digits").fingerprint == (
        "b5da5b81112f7dc0cd4dad87de1342e13d170998cc4ba9116f315d021c1d8c9d"
    )


# Fingerprints


def test_a_fingerprint_is_the_hash_of_shapes_types_and_bytes_in_order():
    parts = [numbered(3), numbered(2)]
    digest = hashlib.sha256()
    for part in parts:
        for array in (part.inputs, part.targets):
            digest.update(f"{tuple(array.shape)} {array.dtype} ".encode())
            digest.update(bytes(array.contiguous().flatten().view(torch.uint8).tolist()))
    assert fingerprint_of(*parts) == digest.hexdigest()


CHANGED = [
    pytest.param(Examples(numbered(4).inputs, numbered(4).targets.flip(0)), id="labels"),
    pytest.param(
        Examples(numbered(4).inputs.nextafter(torch.tensor(9.0)), numbered(4).targets), id="pixel"
    ),
    pytest.param(Examples(numbered(4).inputs.view(4, 1, 1), numbered(4).targets), id="shape"),
    pytest.param(Examples(numbered(4).inputs.view(torch.int32), numbered(4).targets), id="type"),
]


@pytest.mark.parametrize("changed", CHANGED)
def test_any_change_changes_the_fingerprint(changed):
    assert fingerprint_of(changed) != fingerprint_of(numbered(4))


def test_a_fingerprint_depends_on_values_and_not_on_memory_layout():
    upright = Examples(torch.arange(24.0).view(2, 1, 3, 4), torch.arange(2))
    turned = Examples(upright.inputs.transpose(2, 3).contiguous().transpose(2, 3), upright.targets)
    assert not turned.inputs.is_contiguous()
    assert fingerprint_of(turned) == fingerprint_of(upright)


# Mini-batches


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_each_epoch_uses_each_example_at_most_once_in_full_batches(batch_size):
    examples, per_epoch = numbered(10), 10 // batch_size
    iterator = batches(examples, batch_size, generator=seeded())
    epochs = [targets_of(iterator, per_epoch) for _ in range(4)]
    for epoch in epochs:
        assert all(len(batch) == batch_size for batch in epoch)
        assert len(set(itertools.chain(*epoch))) == per_epoch * batch_size
    assert len({str(epoch) for epoch in epochs}) > 1


def test_inputs_go_with_their_targets():
    for inputs, targets in itertools.islice(batches(numbered(10), 4, generator=seeded()), 6):
        assert inputs.flatten().tolist() == targets.tolist()


def test_one_seed_gives_one_order_and_another_seed_another():
    orders = [
        targets_of(batches(numbered(50), 7, generator=seeded(seed)), 20) for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_is_a_permutation_drawn_from_the_generator_for_each_epoch():
    generator = seeded(3)
    drawn = [torch.randperm(7, generator=generator).tolist() for _ in range(2)]
    expected = [order[start : start + 3] for order in drawn for start in (0, 3)]
    assert targets_of(batches(numbered(7), 3, generator=seeded(3)), 4) == expected


def test_shuffled_batches_are_copies_and_leave_the_data_alone():
    examples = numbered(6)
    inputs, targets = next(batches(examples, 6, generator=seeded()))
    inputs.zero_()
    targets.zero_()
    assert examples.targets.tolist() == list(range(6))
    assert examples.inputs.flatten().tolist() == list(range(6))


def test_ordered_batches_walk_the_data_in_order_and_begin_again():
    assert targets_of(ordered_batches(numbered(7), 3), 5) == [
        [0, 1, 2],
        [3, 4, 5],
        [0, 1, 2],
        [3, 4, 5],
        [0, 1, 2],
    ]


@pytest.mark.parametrize(
    "begin", [lambda e, n: batches(e, n, generator=seeded()), ordered_batches], ids=["new", "fixed"]
)
@pytest.mark.parametrize("batch_size", [0, -1, 41])
def test_an_impossible_batch_size_is_refused_at_once(begin, batch_size):
    with pytest.raises(
        ValueError, match=f"`batch_size` is {batch_size}: choose 1 to 40, the number"
    ):
        begin(numbered(40), batch_size)
