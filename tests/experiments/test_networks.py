import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import SurgeryError
from bnkit.experiments.networks import (
    ACTIVATIONS,
    HIDDEN,
    NETWORKS,
    ResidualBlock,
    activation,
    add_to_inputs,
    add_to_logits_too,
    dlology,
    logistic,
    mlp,
    network,
    resnet,
    udacity,
    vgg,
)

ACTIVATION_CLASSES = tuple(ACTIVATIONS.values())
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
FIXED = sorted(set(NETWORKS) - {"mlp"})


def count(model):
    return sum(p.numel() for p in model.parameters())


def of_kind(model, *kinds):
    return [m for m in model.modules() if isinstance(m, kinds)]


def traced_shapes(model, image, kind):
    """Return the output shapes of the layers of this kind, in the order of their calls."""
    shapes = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
        for layer in of_kind(model, kind)
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(
    ("build", "shape", "parameters"),
    [
        # 784·100 + 100, two of 100·100 + 100, 100·10 + 10
        (mlp, (1, 28, 28), 78_500 + 2 * 10_100 + 1_010),
        # 3·3·1·32 + 32, 3·3·32·64 + 64, 3·3·64·64 + 64, then 3·3·64 features into 64 into 10
        (dlology, (1, 28, 28), 320 + 18_496 + 36_928 + 36_928 + 650),
        # 9·4(d − 1)·4d + 4d for depths 2 to 19, 9·1·4 + 4 for the first, then 76 into 100 into 10
        (
            udacity,
            (1, 28, 28),
            40 + sum(144 * d * (d - 1) + 4 * d for d in range(2, 20)) + 7_700 + 1_010,
        ),
        (logistic, (1, 8, 8), 650),
    ],
)
def test_published_networks_have_the_parameters_that_algebra_says(build, shape, parameters):
    assert count(build(shape, 10, activation="relu")) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in NETWORKS
        for shape in [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 19, 30)]
        if name != "dlology" or shape[1] >= 18  # smaller ones are refused, see below
    ],
    ids=str,
)
def test_every_network_gives_logits_for_every_image_size_it_accepts(name, shape):
    model = network(name).build(shape, 7, activation="tanh")
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_plain_and_share_no_module(name):
    model = network(name).build((1, 28, 28), 10, activation="relu")
    assert not of_kind(model, *BATCH_NORMS)
    everywhere = [m for _, m in model.named_modules(remove_duplicate=False)]
    assert len({id(m) for m in everywhere}) == len(everywhere)


@pytest.mark.parametrize(
    ("name", "activations"),
    [("mlp", 3), ("dlology", 4), ("udacity", 20), ("vgg", 10), ("resnet", 13), ("logistic", 0)],
)
def test_the_activation_stands_after_every_layer_but_the_last(name, activations):
    model = network(name).build((1, 28, 28), 10, activation="softsign")
    assert len(of_kind(model, nn.Softsign)) == activations
    assert len(of_kind(model, *ACTIVATION_CLASSES)) - len(of_kind(model, nn.Identity)) == (
        activations
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_global_seed_decides_the_arrays(name):
    built = []
    for _ in range(2):
        torch.manual_seed(5)
        built.append(network(name).build((1, 28, 28), 10, activation="relu").state_dict())
    assert all(torch.equal(value, built[1][key]) for key, value in built[0].items())


def test_mlp_takes_any_inputs_and_hidden_layers():
    model = mlp((5,), 3, activation="prelu", hidden=(4, 2))
    assert [tuple(layer.weight.shape) for layer in of_kind(model, nn.Linear)] == [
        (4, 5),
        (2, 4),
        (3, 2),
    ]


def test_mlp_without_hidden_layers_is_logistic_regression():
    assert count(mlp((1, 8, 8), 10, activation="relu", hidden=())) == 650


@pytest.mark.parametrize("side", [28, 8, 27, 32, 5])
def test_udacity_halves_the_image_at_every_third_layer_rounding_up(side):
    model = udacity((1, side, side + 1), 10, activation="relu")
    shapes = traced_shapes(model, torch.randn(2, 1, side, side + 1), nn.Conv2d)
    height, width = side, side + 1
    for depth, shape in enumerate(shapes, start=1):
        if depth % 3 == 0:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        assert shape == (4 * depth, height, width)
    assert len(shapes) == 19


def test_udacity_sizes_on_mnist_are_the_published_ones():
    shapes = traced_shapes(
        udacity((1, 28, 28), 10, activation="relu"), torch.randn(2, 1, 28, 28), nn.Conv2d
    )
    assert list(dict.fromkeys(height for _, height, _ in shapes)) == [28, 14, 7, 4, 2, 1]


@pytest.mark.parametrize(
    ("height", "width", "corner"),
    [
        pytest.param(4, 6, (0, 0), id="even: padded at the end only, as SAME does"),
        pytest.param(5, 7, (-1, -1), id="odd: padded at both ends"),
        pytest.param(4, 7, (0, -1), id="even height, odd width"),
        pytest.param(5, 6, (-1, 0), id="odd height, even width"),
        pytest.param(1, 1, (-1, -1), id="one pixel"),
    ],
)
def test_a_strided_same_convolution_begins_where_tensorflow_begins(height, width, corner):
    # Third convolution of the network alone, with a kernel that copies its upper left pixel.
    layers = list(udacity((1, height, width), 10, activation="identity"))
    third = layers.index([m for m in layers if isinstance(m, nn.Conv2d)][2])
    padding = [m for m in layers[third - 1 : third] if isinstance(m, nn.ZeroPad2d)]
    conv = layers[third]
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, 0, 0, 0] = 1
    image = torch.arange(1.0, height * width + 1).reshape(1, 1, height, width)
    copied = nn.Sequential(*padding, conv)(image.expand(1, 8, -1, -1))[0, 0]

    def pixel(row, column):
        inside = row >= 0 and column >= 0
        return image[0, 0, row, column].item() if inside else 0.0

    assert copied.tolist() == [
        [pixel(corner[0] + 2 * row, corner[1] + 2 * column) for column in range(-(-width // 2))]
        for row in range(-(-height // 2))
    ]


def test_dlology_feature_maps_are_those_of_unpadded_convolutions():
    shapes = traced_shapes(
        dlology((1, 28, 28), 10, activation="relu"), torch.randn(2, 1, 28, 28), nn.Conv2d
    )
    assert shapes == [(32, 26, 26), (64, 11, 11), (64, 3, 3)]


def test_dlology_works_at_its_smallest_size():
    assert dlology((1, 18, 18), 10, activation="relu")(torch.randn(2, 1, 18, 18)).shape == (2, 10)


@pytest.mark.parametrize(("side", "pools"), [(8, 3), (28, 4), (32, 5), (1, 0)])
def test_vgg_pools_while_there_are_two_pixels(side, pools):
    model = vgg((1, side, side), 10, activation="relu")
    assert len(of_kind(model, nn.MaxPool2d)) == pools
    assert len(of_kind(model, nn.Conv2d, nn.Linear)) == 11


@pytest.mark.parametrize(
    ("channels", "maps", "stride", "shortcut"),
    [(4, 4, 1, nn.Identity), (4, 6, 1, nn.Conv2d), (4, 4, 2, nn.Conv2d)],
)
def test_a_residual_block_adds_its_shortcut_before_the_second_activation(
    channels, maps, stride, shortcut
):
    block = ResidualBlock(channels, maps, stride=stride, make=nn.Tanh)
    images = torch.randn(2, channels, 5, 5)
    assert type(block.shortcut) is shortcut
    expected = (block.conv2(block.conv1(images).tanh()) + block.shortcut(images)).tanh()
    torch.testing.assert_close(block(images), expected)


def test_resnet_halves_the_image_twice_and_has_fourteen_layers():
    model = resnet((1, 28, 28), 10, activation="relu")
    shapes = traced_shapes(model, torch.randn(2, 1, 28, 28), ResidualBlock)
    assert shapes[::2] == [(8, 28, 28), (16, 14, 14), (32, 7, 7)]
    weighted = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in weighted if "shortcut" not in name]) == 14


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_elementwise_out_of_place_and_made_anew(name):
    make = activation(name)
    x = torch.linspace(-3, 3, 7)
    kept = x.clone()
    whole = make()(x)
    torch.testing.assert_close(whole, torch.stack([make()(value[None])[0] for value in x]))
    assert torch.equal(x, kept)
    assert make() is not make()


@pytest.mark.parametrize("name", NETWORKS)
def test_summaries_are_one_line(name):
    assert NETWORKS[name].summary
    assert "\n" not in NETWORKS[name].summary


@pytest.mark.parametrize("find", [network, activation])
def test_an_unknown_name_is_refused_with_those_that_look_like_it(find):
    near = {network: ("Resnett", "resnet"), activation: ("leakyrelu", "leaky-relu")}
    asked, meant = near[find]
    with pytest.raises(
        ValueError, match=f"unknown {find.__name__} '{asked}': did you mean.*{meant}"
    ):
        find(asked)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_refuses_an_unknown_activation(name):
    with pytest.raises(ValueError, match="unknown activation 'rleu': did you mean 'relu"):
        network(name).build((1, 28, 28), 10, activation="rleu")


@pytest.mark.parametrize("name", FIXED)
def test_fixed_layers_refuse_hidden_layers_and_accept_the_default(name):
    build = network(name).build
    build((1, 28, 28), 10, activation="relu", hidden=list(HIDDEN))
    with pytest.raises(ValueError, match=f"'{name}' has fixed layers, and `hidden` is \\(50,\\)"):
        build((1, 28, 28), 10, activation="relu", hidden=(50,))


def test_a_hidden_layer_without_units_is_refused():
    with pytest.raises(ValueError, match="`hidden` is \\(10, 0\\): each layer needs at least one"):
        mlp((4,), 2, activation="relu", hidden=(10, 0))


def test_images_too_small_for_unpadded_convolutions_are_refused():
    message = "'dlology' needs images of at least 18×18 pixels and got 8×8: choose larger"
    with pytest.raises(ValueError, match=message):
        dlology((1, 8, 8), 10, activation="relu")
    with pytest.raises(ValueError, match="got 28×17"):
        dlology((1, 28, 17), 10, activation="relu")


@pytest.mark.parametrize("name", sorted(set(FIXED) - {"logistic"}))
def test_convolutional_networks_refuse_inputs_that_are_no_images(name):
    with pytest.raises(
        ValueError, match=f"'{name}' needs images, so an `input_shape` of.*\\(64,\\)"
    ):
        network(name).build((64,), 10, activation="relu")


OPTIONS = {"placement": "before_activation", "momentum": 0.3, "eps": 0.1}


def seeded(make, shape):
    torch.manual_seed(0)
    return make(shape, 10, activation="relu"), torch.randn(5, *shape)


def dense_and_conv(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def by_batch_statistics(x, eps):
    """Batch normalization of (N, C) in float64, by its definition."""
    x = x.double()
    return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()


TWINS = [(add_to_logits_too, dlology, (1, 28, 28)), (add_to_inputs, logistic, (1, 8, 8))]
each = pytest.mark.parametrize(("add", "make", "shape"), TWINS, ids=["dlology", "logistic"])


@each
def test_a_twin_shares_every_weight_and_no_memory_with_the_plain_network(add, make, shape):
    plain, example = seeded(make, shape)
    before = copy.deepcopy(plain.state_dict())
    twin = add(plain, example, **OPTIONS)
    arrays = twin.state_dict()
    for name, array in plain.state_dict().items():
        assert torch.equal(array, before[name])
        if name.endswith("weight"):
            assert torch.equal(array, arrays[name])
            assert array.data_ptr() != arrays[name].data_ptr()
    assert not batch_norms(plain)


@each
def test_momentum_and_eps_arrive_in_every_batch_norm(add, make, shape):
    found = batch_norms(add(*seeded(make, shape), **OPTIONS))
    assert {(layer.momentum, layer.eps) for layer in found} == {(0.3, 0.1)}


@each
def test_a_twin_trains_and_evaluates(add, make, shape):
    plain, example = seeded(make, shape)
    twin = add(plain, example, **OPTIONS)
    F.cross_entropy(twin(example), torch.arange(5)).backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert twin.eval()(example).shape == (5, 10)


def test_every_layer_of_dlology_is_normalised_and_has_lost_its_bias():
    plain, example = seeded(dlology, (1, 28, 28))
    twin = add_to_logits_too(plain, example, **OPTIONS)
    layers = dense_and_conv(twin)
    assert len(layers) == len(batch_norms(twin)) == 5
    assert all(layer.bias is None for layer in layers)
    assert [layer.batchnorm.num_features for layer in layers] == [32, 64, 64, 64, 10]


def test_the_outputs_of_dlologys_twin_are_normalised_logits():
    twin = add_to_logits_too(*seeded(dlology, (1, 28, 28)), **OPTIONS)
    example = torch.randn(6, 1, 28, 28)
    features = []
    twin[-1].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    outputs = twin(example)
    logits = features[0].double() @ twin[-1].weight.double().T
    wanted = by_batch_statistics(logits, eps=0.1)
    torch.testing.assert_close(outputs.double(), wanted, rtol=1e-4, atol=1e-5)


def test_dlologys_twin_has_no_place_after_the_activation():
    plain, example = seeded(dlology, (1, 28, 28))
    with pytest.raises(SurgeryError) as raised:
        add_to_logits_too(plain, example, placement="after_activation", momentum=0.1, eps=1e-5)
    assert str(raised.value) == (
        "`placement` is 'after_activation', and this network also normalises its outputs, which "
        "no activation follows: use before_activation"
    )


@pytest.mark.parametrize("placement", ["before_activation", "after_activation"])
def test_the_twin_of_softmax_regression_normalises_its_pixels(placement):
    plain, example = seeded(logistic, (1, 8, 8))
    twin = add_to_inputs(plain, example, placement=placement, momentum=0.3, eps=0.1)
    (layer,), (batch_norm,) = dense_and_conv(twin), batch_norms(twin)
    assert batch_norm.num_features == 64
    assert torch.equal(layer.bias, dense_and_conv(plain)[0].bias)
    pixels = by_batch_statistics(example.flatten(1), eps=0.1)
    wanted = pixels @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(twin(example).double(), wanted, rtol=1e-4, atol=1e-5)
