"""A language policy from nothing or from a folder: what it needs, what it refuses, and that it comes back as it was."""

import json

import numpy as np
import pytest
import torch

from peira.experience.dialogue import Tokens
from peira.learners.language import LanguageLearner, supervised_loss
from peira.policies.files import policy_hash, save_policy
from peira.policies.lm import model as lm
from peira.policies.lm.model import load_language_policy, make_tiny
from peira.policies.lm.sampler import Sampler
from peira.policies.lm.tokenizer import BYTE_PAIRS, Renderer, train_tokenizer

TEXTS = ["go to shelf 1", "take mug 2 from shelf 1."]
EPISODE = Tokens(np.array([2, 5, 6, 7, 3]), np.array([False] * 3 + [True] * 2), np.zeros(2, np.float32))


@pytest.fixture
def folder(tmp_path):
    policy = make_tiny("tiny:16x1", TEXTS, context=64, seed=0)
    policy.id, policy.version = "p", 5
    save_policy(policy, tmp_path / "policy")
    return tmp_path / "policy"


def test_it_comes_back_as_it_was(folder):
    again, once = load_language_policy(str(folder)), make_tiny("tiny:16x1", TEXTS, context=64, seed=0)
    assert policy_hash(again) == policy_hash(once)
    assert (again.id, again.version) == ("p", 5)
    assert again.renderer.first([{"role": "user", "content": "go to"}]) == once.renderer.first(
        [{"role": "user", "content": "go to"}]
    )


def test_the_seed_makes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (make_tiny("tiny:16x1", TEXTS, context=64, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert policy_hash(one) == policy_hash(same) != policy_hash(other)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(
        ValueError, match=r"model: .* holds no config.json; name the folder of a transformers model"
    ):
        load_language_policy(str(tmp_path))


def test_no_such_folder_and_no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match="model: there is no 'nowhere/nothing', neither as a folder nor on the hub"
    ):
        load_language_policy("nowhere/nothing")


def test_a_folder_without_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"model: .* has no tokenizer; save one there"):
        load_language_policy(str(folder))


def test_a_tokenizer_without_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ValueError, match=r"the tokenizer in .* has no chat template; set tokenizer.chat_template"
    ):
        load_language_policy(str(folder))


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch):
    about = json.loads((folder / "config.json").read_text())
    about.update(hidden_size=4096, intermediate_size=16384, head_dim=128, num_attention_heads=32)
    about.update(num_hidden_layers=32, layer_types=["full_attention"] * 32)
    (folder / "config.json").write_text(json.dumps(about))
    monkeypatch.setattr(lm, "free_memory", lambda device: 24 * 2**30)
    with pytest.raises(ValueError) as fault:
        load_language_policy(str(folder))
    message = str(fault.value)
    assert "has 7.6 billion parameters and needs about 113 GiB to train; 24 GiB are free on cpu" in message
    assert "Train adapters only (--lora-rank 16), or take a smaller model" in message


@pytest.mark.parametrize("spec", ["tiny", "tiny:96", "tiny:95x2", "tiny:96x0"])
def test_a_tiny_model_that_is_none(spec):
    with pytest.raises(ValueError, match="model: "):
        make_tiny(spec, TEXTS, context=64, seed=0)


def test_with_lora_only_adapters_are_trained(folder):
    policy = load_language_policy(str(folder), lora_rank=2)
    names = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert names
    assert all("lora" in name for name in names)
    frozen = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    before = policy.log_prob([EPISODE]).sum().item()
    learner = LanguageLearner(policy, learning_rate=0.05)
    for _ in range(3):
        learner.step([EPISODE], supervised_loss(torch.ones(2)))
    assert policy.log_prob([EPISODE]).sum().item() > before
    for name, parameter in policy.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])
    sampler = Sampler(policy, 1)
    sampler.begin(0, 0)
    token, log_prob = sampler.feed([0], [[2, 5]])
    scored = policy.log_prob([Tokens(np.array([2, 5, token[0]]), np.array([False, False, True]), log_prob)])
    assert scored.item() == pytest.approx(log_prob.item(), abs=1e-5)


def test_parts_of_a_batch_add_up_to_its_gradient(folder):
    """Whatever `micro_tokens`, the step is the same."""
    rng = np.random.default_rng(0)
    episodes = []
    for length in (5, 9, 3, 7, 9):
        marks = np.arange(length) >= 2
        episodes.append(Tokens(rng.integers(5, 10, length), marks, np.zeros(marks.sum(), np.float32)))
    weight = torch.rand(sum(int(episode.sampled.sum()) for episode in episodes))
    after = []
    for micro_tokens in (1000, 10, 1):
        policy = load_language_policy(str(folder))
        learner = LanguageLearner(policy, learning_rate=1e-2, micro_tokens=micro_tokens)
        norm = learner.step(episodes, supervised_loss(weight))
        after.append((norm, torch.cat([p.detach().flatten() for p in policy.trained()])))
    for norm, parameters in after[1:]:
        assert norm == pytest.approx(after[0][0], rel=1e-4)
        torch.testing.assert_close(parameters, after[0][1], atol=1e-4, rtol=0)


def test_a_gradient_that_is_not_finite_is_no_step(folder):
    policy = load_language_policy(str(folder))
    before, version = policy_hash(policy), policy.version
    LanguageLearner(policy, learning_rate=1e-2).step(
        [EPISODE], lambda log_prob, which: log_prob.sum() * np.inf
    )
    assert policy_hash(policy) == before
    assert policy.version == version


def test_an_episode_is_no_longer_than_a_sliding_window():
    policy = make_tiny("tiny:16x1", TEXTS, context=64, seed=0)
    policy.model.config.sliding_window = 32
    assert policy.context == 64  # Its layers attend to everything.
    policy.model.config.layer_types = ["sliding_attention"]
    assert policy.context == 32


def test_many_words_get_byte_pairs():
    texts = [f"word{i} and thing{i * 7}" for i in range(1500)]
    tokenizer = train_tokenizer(texts)
    assert len(tokenizer) <= BYTE_PAIRS
    text = "word77 ünd  Ding"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_chatml_template_is_followed():
    """Rendered turn by turn, an episode is what the template makes of the whole dialogue."""
    tokenizer = train_tokenizer(["user assistant system hello there right"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<bos>' + m['role'] + ' ' + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bos>assistant ' }}{% endif %}"
    )
    render = Renderer(tokenizer, [tokenizer.eos_token_id])
    messages = [{"role": "system", "content": "hello"}, {"role": "user", "content": "there"}]
    action = [*render.encode("right"), tokenizer.eos_token_id]
    ids = [*render.first(messages), *action, *render.next("hello", action[-1])]
    messages += [{"role": "assistant", "content": "right"}, {"role": "user", "content": "hello"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == render.encode(whole)
    assert render.text(action) == "right"
    cut = render.next("hello", render.encode("right")[-1])  # An action cut off before its end token.
    assert cut[0] == tokenizer.eos_token_id
