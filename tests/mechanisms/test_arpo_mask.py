"""Only what the policy sampled is trained on, and exactly that (``arpo.md`` 8, test 6)."""

import numpy as np
import pytest
import torch

from peira.experience.dialogue import TextEpisode
from peira.learners.language import LanguageLearner, supervised_loss
from peira.policies.lm.model import LanguagePolicy, make_tiny


@pytest.fixture
def policy():
    return make_tiny("tiny:16x1", ["a b c d e f g h"], context=64, seed=0)


EPISODE = TextEpisode(
    "e",
    "t",
    "g",
    observations=["a b", "c d"],
    actions=["e f", "g"],
    context=[[2, 5, 6, 4], [7, 8, 4]],
    action_tokens=[[9, 10, 3], [11, 3]],
    log_probs=[[-1.0, -1.1, -1.2], [-2.0, -2.1]],
    ending="finished",
)


def test_the_mask_has_as_many_ones_as_tokens_were_sampled():
    tokens = EPISODE.tokens
    assert tokens.sampled.sum() == EPISODE.sampled_tokens == len(tokens.log_probs) == 5
    assert tokens.ids[tokens.sampled].tolist() == [9, 10, 3, 11, 3]
    assert tokens.ids[~tokens.sampled].tolist() == [2, 5, 6, 4, 7, 8, 4]


def test_logits_at_what_was_read_do_not_move_the_loss(policy):
    """Disturbed one by one: those that predict prompt, observation and header tokens leave the loss, others move it."""
    tokens = EPISODE.tokens
    original = policy.model.forward
    length = len(tokens)
    policy._plain_head = False  # Everything goes through the model's own logits.

    def loss_with(disturbed):
        def forward(**inputs):
            result = original(**inputs)
            noise = torch.zeros_like(result.logits)
            if disturbed is not None:
                noise[:, disturbed] = torch.linspace(-3, 3, noise.shape[-1])
            result.logits = result.logits + noise
            return result

        policy.model.forward = forward
        weight = torch.full((5,), 0.2)
        with torch.no_grad():
            return supervised_loss(weight)(policy.log_prob([tokens]), torch.arange(5)).item()

    untouched = loss_with(None)
    predicts_sampled = {place - 1 for place in np.flatnonzero(tokens.sampled)}
    for place in range(length):
        assert (loss_with(place) == untouched) == (place not in predicts_sampled)


def test_the_sampled_ids_are_trained_on_not_a_second_encoding_of_their_text():
    """A tokenizer that writes "ab" as one token, and a policy that sampled "a", "b": the ids win."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {"<end>": 0, "a": 1, "b": 2, "ab": 3}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", chat_template="x")
    config = Qwen3Config(
        vocab_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=32, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = LanguagePolicy(Qwen3ForCausalLM(config), tokenizer)
    sampled = [1, 2, 0]
    text = policy.renderer.text(sampled)
    assert policy.renderer.encode(text) == [3]  # What a second encoding would train on.
    episode = TextEpisode(
        "", "", "", actions=[text], context=[[1]], action_tokens=[sampled], log_probs=[[0.0] * 3]
    )
    assert episode.tokens.ids.tolist() == [1, 1, 2, 0]
    before = policy.log_prob([episode.tokens]).sum().item()
    learner = LanguageLearner(policy, learning_rate=1e-2)
    learner.step([episode.tokens], supervised_loss(torch.ones(3)))
    assert policy.log_prob([episode.tokens]).sum().item() > before
