import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnkit import Moments, add
from bnkit.diagnosis.gathering import gather


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.fc, self.last, self.out = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x, scale=1.0):
        x = self.drop(self.bn(self.conv(scale * x)).relu().mean((2, 3)))
        return self.out(self.last(self.fc(x)).relu())


def images(number=3, rows=8):
    return [torch.randn(rows, 3, 4, 4, dtype=torch.float64) for _ in range(number)]


def seeded():
    torch.manual_seed(0)
    return Net().double()


def pooled(parts):
    moments = [Moments.of(part) for part in parts]
    return sum(moments[1:], moments[0])


def same(moments, other):
    assert moments.count == other.count
    torch.testing.assert_close(moments.mean, other.mean)
    torch.testing.assert_close(moments.deviations, other.deviations)


def test_moments_are_those_of_the_inputs_in_training_without_dropout_and_in_eval_mode():
    model, batches = seeded(), images()
    evidence = gather(model, batches)
    same(evidence.norm("bn").as_trained[0].moments, pooled(map(model.conv, batches)))

    def inputs_of_last(x):
        return model.fc(model.bn(model.conv(x)).relu().mean((2, 3)))

    with torch.no_grad():
        model.eval()
        same(evidence.norm("last").in_eval[0].moments, pooled(map(inputs_of_last, batches)))
        model.bn.train()  # batch statistics, dropout off
        same(evidence.norm("last").as_trained[0].moments, pooled(map(inputs_of_last, batches)))


def test_moments_of_rows_and_of_mini_batches_are_of_their_means():
    model, batches = seeded(), images()
    (seen,) = gather(model, batches).norm("bn").as_trained
    outputs = [model.conv(batch) for batch in batches]
    same(seen.of_rows, pooled(output.mean((2, 3)) for output in outputs))
    means = [output.mean((0, 2, 3)).expand(len(output), -1) for output in outputs]
    same(seen.of_batches, pooled(means))
    assert (seen.batches, seen.fewest, seen.shape) == (3, 8 * 16, (8, 4, 4, 4))


def test_dropout_is_on_in_training_mode_only():
    norm = gather(seeded(), images(rows=64)).norm("last")
    assert (
        norm.in_training[0].moments.variance.sum() > 1.2 * norm.as_trained[0].moments.variance.sum()
    )


def test_a_frozen_layer_normalises_by_its_running_statistics_as_it_would_in_training():
    model, batches = seeded(), images()
    model.bn.eval()
    norm = gather(model, batches).norm("last")
    same(norm.as_trained[0].moments, norm.in_eval[0].moments)


def test_a_layer_that_owns_its_batch_norm_is_seen_at_the_batch_norm():
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (norm,) = gather(add(plain, torch.zeros(2, 3)), torch.randn(6, 5, 3)).norms
    assert (norm.path, norm.owner, norm.shapes) == ("0.batchnorm", "0", ((30, 4),))
    assert [str(call) for call in norm.calls] == ["'0' (NormalizedLinear)"]


def test_what_is_known_of_the_loader():
    data = TensorDataset(torch.randn(20, 3, 4, 4).double())
    loader = gather(seeded(), DataLoader(data, batch_size=8)).loader
    assert (loader.batch_size, loader.length, loader.drops_last) == (8, 20, False)
    assert loader.rows == (8, 8, 4)
    assert gather(seeded(), images()).loader.length is None


def test_batches_may_be_an_iterator():
    assert gather(seeded(), iter(images())).norm("bn").in_eval[0].batches == 3


def test_an_example_may_be_a_tuple_or_a_dict():
    (x,) = images(1)
    for example in ((x, 2.0), {"x": x, "scale": 2.0}):
        evidence = gather(seeded(), example=example)
        assert evidence.norm("bn").shapes == ((8, 4, 4, 4),)
        assert evidence.norm("bn").as_trained == ()
        assert not evidence.batches_given


def test_the_groups_of_the_optimizer_name_the_parameters():
    model = seeded()
    stranger = nn.Parameter(torch.zeros(1))
    groups = [{"params": [model.bn.weight, stranger]}, {"params": [model.out.bias], "lr": 3.0}]
    found = gather(model, optimizer=torch.optim.SGD(groups, lr=1.0)).groups
    assert [(group["params"], group["lr"]) for group in found] == [
        (["bn.weight"], 1.0),
        (["out.bias"], 3.0),
    ]


def test_a_mini_batch_on_which_training_fails_is_left_out_of_training_only():
    evidence = gather(seeded(), [*images(2), *images(1, rows=1)])
    norm = evidence.norm("last")
    assert [norm.in_training[0].batches, norm.in_eval[0].batches] == [2, 3]
    assert "more than 1 value per channel" in evidence.training_failure
    assert evidence.failure == ""


def test_the_loaders_own_generator_is_given_back_too():
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(20, 3, 4, 4).double())
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state()
    gather(seeded(), loader)
    assert torch.equal(generator.get_state(), before)


def test_wrappers_are_taken_off():
    evidence = gather(nn.DataParallel(seeded()), images(1))
    assert [norm.path for norm in evidence.norms] == ["bn", "last"]
    assert evidence.failure == ""


def test_padding_is_what_repeats_the_last_position_of_a_sequence():
    x = torch.arange(1.0, 31).reshape(2, 3, 5)
    x[0, :, 2:] = 0
    (seen,) = gather(nn.Sequential(nn.BatchNorm1d(3)), [x]).norms[0].in_eval
    assert seen.padding == 3
    real = torch.cat([x[0, :, :2], x[1]], 1).T  # (positions, C)
    same(seen.unpadded, Moments.of(real))


def test_a_training_step_says_what_it_writes_and_which_gradients_it_has():
    model = seeded()
    step = gather(model, images(1)).step
    assert {"bn.running_mean", "last.num_batches_tracked"} <= step.written_in_forward
    assert step.written_in_backward == frozenset()
    assert step.gradients["conv.bias"] < 1e-9 < step.gradients["conv.weight"]


def test_a_model_without_gradients_has_no_step():
    assert (
        gather(nn.Sequential(nn.BatchNorm1d(2, affine=False)), example=torch.eye(2).long()).step
        is None
    )


def test_a_distributed_model_is_taken_apart_and_keeps_its_paths(one_rank):
    model = nn.ModuleDict({"net": one_rank(nn.Sequential(nn.BatchNorm1d(2)))})
    evidence = gather(model)
    assert [norm.path for norm in evidence.norms] == ["net.module.0"]
    assert [(p.path, p.broadcasts_buffers) for p in evidence.parallel] == [("net", True)]
    unsent = one_rank(nn.BatchNorm1d(2))
    unsent.broadcast_buffers = False
    whole = gather(unsent)
    assert [(p.path, p.broadcasts_buffers) for p in whole.parallel] == [("", False)]
