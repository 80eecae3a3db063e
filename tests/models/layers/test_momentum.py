import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ropim_mm.models.layers import MomentumCopy


def build():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    head = nn.Linear(5, 2, bias=False)
    return body, head, MomentumCopy(body=body, head=head)


def scramble(*modules):
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.normal_()


def test_starts_as_a_copy_that_is_not_trained():
    body, head, copy = build()
    for name, original in (('body', body), ('head', head)):
        own = getattr(copy, name)
        for key, value in original.state_dict().items():
            assert torch.equal(own.state_dict()[key], value)
        shared = {p.data_ptr() for p in original.parameters()}
        assert not shared & {p.data_ptr() for p in own.parameters()}
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in body.parameters())
    # The originals are not registered a second time.
    names = [n for n, _ in copy.named_parameters()]
    assert names == [
        'body.0.weight', 'body.0.bias', 'body.1.weight', 'body.1.bias',
        'head.weight',
    ]  # fmt: skip


@pytest.mark.parametrize('momentum', [0.0, 0.9, 0.996, 1.0])
def test_update_is_the_equation_for_every_parameter(momentum):
    body, head, copy = build()
    scramble(copy)
    before = {n: p.clone() for n, p in copy.named_parameters()}
    copy.update(momentum)
    for name, original in (('body', body), ('head', head)):
        for key, p in original.named_parameters():
            old = before[f'{name}.{key}']
            new = copy.get_parameter(f'{name}.{key}')
            expected = momentum * old + (1 - momentum) * p
            torch.testing.assert_close(new.data, expected.data)
    assert copy.get_parameter('head.weight').grad_fn is None


def test_buffers_are_not_averaged():
    body, _, copy = build()
    x = torch.randn(8, 4)
    body(x)
    copy.body(x + 1)
    own = {n: b.clone() for n, b in copy.named_buffers()}
    assert not torch.equal(copy.body[1].running_mean, body[1].running_mean)
    copy.update(0.5)
    for name, buffer in copy.named_buffers():
        assert torch.equal(buffer, own[name]), name


def test_init_weights_copies_again():
    body, head, copy = build()
    scramble(body, head)
    body(torch.randn(8, 4))
    copy.init_weights()
    for key, value in body.state_dict().items():
        assert torch.equal(copy.body.state_dict()[key], value), key
    assert torch.equal(copy.head.weight, head.weight)


def test_follows_modules_that_change_their_type():
    body, head, copy = build()
    copy.update(0.5)
    parent = nn.ModuleDict(dict(body=body, head=head, copy=copy)).double()
    scramble(body)
    parent['copy'].update(0.0)
    assert copy.body[0].weight.dtype == torch.float64
    assert torch.equal(copy.body[0].weight, body[0].weight)


def test_a_state_dict_restores_it():
    body, _, copy = build()
    scramble(copy)
    state = {k: v.clone() for k, v in copy.state_dict().items()}
    _, _, other = build()
    other.load_state_dict(state)
    for key, value in copy.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize('momentum', [-0.1, 1.5, float('nan')])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(ValueError, match='expected a number in'):
        build()[2].update(momentum)


def test_update_is_one_operation_over_all_parameters():
    layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)])
    copy = MomentumCopy(layers=layers)

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.overloadpacket.__name__, len(args[0])))
            return func(*args, **(kwargs or {}))

    for _ in range(2):
        seen = []
        with Count():
            copy.update(0.9)
        assert seen == [('_foreach_lerp_', 40)]
