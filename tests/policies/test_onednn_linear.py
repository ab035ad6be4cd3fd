"""A linear layer through oneDNN computes what torch's own does."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from peira.policies.compiled import can_compile, compile_function
from peira.policies.lm import linear
from peira.policies.lm.linear import OneDnnLinear, use_onednn

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def pair(width: int, out: int, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """The stock layer, and its copy through oneDNN."""
    torch.manual_seed(0)
    stock = nn.Linear(width, out, bias=bias)
    ours = nn.Sequential(copy.deepcopy(stock))
    use_onednn(ours)
    return stock, ours[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 2048, 96), (2048, 96), (3, 5, 96)])
def test_values_and_gradients_are_those_of_the_stock_layer(shape, bias):
    stock, ours = pair(96, 130, bias=bias)
    x = torch.randn(shape)
    weight = torch.randn(*shape[:-1], 130)
    found = []
    for layer in (stock, ours):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        (out * weight).sum().backward()
        found.append([out, leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_only_large_products_of_single_precision_take_the_other_way(monkeypatch):
    calls = []
    product = linear._product
    monkeypatch.setattr(linear, "_product", lambda *tensors: calls.append(1) or product(*tensors))
    _, ours = pair(128, 128)
    ours(torch.randn(127, 128))
    assert calls == []
    ours.double()(torch.randn(4096, 128, dtype=torch.float64))
    assert calls == []
    ours.float()(torch.randn(128, 128))
    assert calls == [1]


def test_parameters_that_are_not_trained_get_no_gradient():
    _, ours = pair(96, 130)
    ours.requires_grad_(False)
    x = torch.randn(2048, 96, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None and ours.bias.grad is None
    torch.testing.assert_close(x.grad[0], ours.weight.sum(0), rtol=1e-4, atol=1e-4)


def test_only_plain_layers_are_changed_and_the_parameters_stay_the_same_objects():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Special(4, 4), nn.LayerNorm(4))
    before = dict(model.named_parameters())
    use_onednn(model)
    assert [type(layer) for layer in model] == [OneDnnLinear, Special, nn.LayerNorm]
    assert all(model.get_parameter(name) is value for name, value in before.items())


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_a_compiled_function_may_contain_the_layer():
    stock, ours = pair(128, 128)
    arguments = [torch.randn(256, 128), *(parameter.detach() for parameter in ours.parameters())]

    def applied(x, weight, bias):
        return (functional_call(ours, {"weight": weight, "bias": bias}, (x,)),)

    (found,) = compile_function(applied, arguments)(*arguments)
    torch.testing.assert_close(found, stock(arguments[0]), rtol=1e-4, atol=1e-4)
