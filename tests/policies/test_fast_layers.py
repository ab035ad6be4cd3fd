"""Norms, gates and linear layers of our own compute what the stock ones do, and so do their gradients."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from peira.experience.dialogue import Tokens
from peira.policies import onednn
from peira.policies.compiled import can_compile, compile_function
from peira.policies.lm import layers
from peira.policies.lm.layers import GatedFeedForward, OneDnnLinear, RootMeanSquareNorm, use_fast_layers
from peira.policies.lm.model import LanguagePolicy, make_tiny
from peira.policies.onednn import onednn_is_faster

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def ours(stock: nn.Module, kind: type) -> nn.Module:
    """A copy of the stock layer as a layer of this kind."""
    layer = copy.deepcopy(stock)
    layer.__class__ = kind
    return layer


def with_gradients(layer: nn.Module, x: torch.Tensor, pull: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    (out * pull).sum().backward()
    return [out, leaf.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_alike(stock: nn.Module, layer: nn.Module, x: torch.Tensor, pull: torch.Tensor) -> None:
    found = zip(with_gradients(layer, x, pull), with_gradients(stock, x, pull), strict=True)
    for mine, theirs in found:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), stock(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 4, 32)])
def test_the_norm(shape):
    torch.manual_seed(0)
    stock = Qwen3RMSNorm(32, eps=1e-2)
    nn.init.normal_(stock.weight)
    assert_alike(stock, ours(stock, RootMeanSquareNorm), torch.randn(shape), torch.randn(shape))


def test_the_norm_of_rows_whose_gradient_lies_otherwise_in_memory():
    stock = Qwen3RMSNorm(32)
    pull = torch.randn(2, 4, 3, 32, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    assert_alike(stock, ours(stock, RootMeanSquareNorm), torch.randn(2, 3, 4, 32), pull)


def test_the_gate():
    torch.manual_seed(0)
    stock = Qwen3MLP(Qwen3Config(hidden_size=16, intermediate_size=48))
    assert_alike(stock, ours(stock, GatedFeedForward), torch.randn(2, 7, 16), torch.randn(2, 7, 16))


@needs_onednn
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")
@pytest.mark.parametrize(
    ("about", "faster"),
    [({"vendor_id": "AuthenticAMD"}, True), ({"vendor_id": "GenuineIntel"}, False), ({}, False)],
)
def test_mkl_is_kept_on_intels_processors_and_where_nothing_is_known(monkeypatch, about, faster):
    monkeypatch.setattr(onednn, "processor", lambda: about)
    assert onednn_is_faster.__wrapped__() is faster


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(96, 130), (130, 96)])
@pytest.mark.parametrize("rows", [(1, 2048), (2048,), (3, 5)])
def test_the_linear_layer(rows, sizes, bias):
    torch.manual_seed(0)
    stock = nn.Linear(*sizes, bias=bias)
    assert_alike(stock, ours(stock, OneDnnLinear), torch.randn(*rows, sizes[0]), torch.randn(*rows, sizes[1]))


@needs_onednn
def test_only_large_products_of_single_precision_take_the_other_way(monkeypatch):
    calls = []
    product = layers.product
    monkeypatch.setattr(layers, "product", lambda *tensors: calls.append(1) or product(*tensors))
    layer = ours(nn.Linear(128, 128), OneDnnLinear)
    layer(torch.randn(127, 128))
    assert calls == []
    layer.double()(torch.randn(4096, 128, dtype=torch.float64))
    assert calls == []
    layer.float()(torch.randn(128, 128))
    assert calls == [1]


@needs_onednn
def test_parameters_that_are_not_trained_get_no_gradient():
    layer = ours(nn.Linear(96, 130), OneDnnLinear).requires_grad_(False)
    x = torch.randn(2048, 96, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(x.grad[0], layer.weight.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "mistral"])
def test_a_whole_model_of_each_type_computes_what_the_stock_one_does(kind):
    config = AutoConfig.for_model(
        kind,
        vocab_size=40,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=None,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = make_tiny("tiny:16x1", ["a b c"], context=32, seed=0).tokenizer
    policy = LanguagePolicy(copy.deepcopy(stock), tokenizer)
    assert any(isinstance(layer, RootMeanSquareNorm) for layer in policy.modules())
    assert any(isinstance(layer, GatedFeedForward) for layer in policy.modules())
    rng = np.random.default_rng(0)
    sampled = np.arange(50) >= 20
    beginning = rng.integers(3, 40, 20)
    ids = [np.concatenate([beginning, rng.integers(3, 40, 30)]) for _ in range(3)]
    episodes = [Tokens(each, sampled, np.zeros(30, np.float32)) for each in ids]
    found = policy.log_prob(episodes)
    given = torch.from_numpy(np.stack(ids))
    logits = stock(given).logits[:, 19:-1]
    expected = logits.log_softmax(-1).gather(-1, given[:, 20:, None]).flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for log_prob in (found, expected):
        (log_prob * torch.linspace(-1, 1, 90)).sum().backward()
    for mine, theirs in zip(policy.trained(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_a_models_layers_change_and_its_parameters_stay_the_same_objects():
    policy = make_tiny("tiny:16x1", ["a b c"], context=32, seed=0)
    kinds = {type(layer) for layer in policy.model.modules()}
    assert {RootMeanSquareNorm, GatedFeedForward} <= kinds
    assert (OneDnnLinear in kinds) == onednn_is_faster()
    before = dict(policy.model.named_parameters())
    use_fast_layers(policy.causal)
    assert all(policy.model.get_parameter(name) is value for name, value in before.items())


@needs_onednn
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
@pytest.mark.parametrize("faster", [True, False])
def test_a_compiled_function_may_contain_the_layer(monkeypatch, faster):
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: faster)
    torch.manual_seed(0)
    stock = nn.Linear(128, 130)
    layer = ours(stock, OneDnnLinear)
    arguments = [torch.randn(256, 128), *(parameter.detach() for parameter in layer.parameters())]

    def applied(x, weight, bias):
        return (functional_call(layer, {"weight": weight, "bias": bias}, (x,)),)

    compiled = compile_function(applied, arguments)
    with torch.profiler.profile() as seen:
        (found,) = compiled(*arguments)
    assert ("peira::product" in {event.key for event in seen.key_averages()}) == faster
    torch.testing.assert_close(found, stock(arguments[0]), rtol=1e-4, atol=1e-4)
