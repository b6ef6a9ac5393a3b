"""Sampling: the right distribution, and the same tokens whatever is cached, shared, dropped or split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from pastry.training.rollouts import draw, sample, step_uniforms

EOS = 3
VOCABULARY = 24
LONGEST = 10


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.4, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Groups of three, of several lengths: some rows need padding."""
    lengths = (3, 7, 5, 7, 1, 4)
    rng = np.random.default_rng(1)
    return [prompt for length in lengths for prompt in [rng.integers(4, VOCABULARY, length).tolist()] * 3]


@torch.no_grad()
def one_by_one(model, prompts, uniforms, temperature: float, top_p: float) -> list[list[int]]:
    """The definition: no cache, no batch, no padding; the whole distribution sorted in plain Python."""
    completions = []
    for prompt, numbers in zip(prompts, uniforms.tolist(), strict=True):
        new: list[int] = []
        while len(new) < len(numbers) and new[-1:] != [EOS]:
            chances = (model(input_ids=torch.tensor([prompt + new])).logits[0, -1] / temperature).softmax(-1).tolist()
            ranked = list(enumerate(chances))
            if top_p < 1:
                ranked.sort(key=lambda pair: -pair[1])
                before = np.cumsum([0.0, *(chance for _, chance in ranked)])
                ranked = [pair for pair, mass in zip(ranked, before, strict=False) if mass < top_p]
            masses = np.cumsum([chance for _, chance in ranked])
            new.append(ranked[int(np.argmax(masses >= numbers[len(new)] * masses[-1]))][0])
        completions.append(new)
    return completions


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (1.5, 0.5)])
def test_equals_the_loop_without_cache_batch_and_padding(model, prompts, temperature, top_p):
    uniforms = step_uniforms(0, 0, len(prompts), LONGEST)
    found = sample(model, prompts, uniforms, ends=[EOS], temperature=temperature, top_p=top_p)
    assert found == one_by_one(model, prompts, uniforms, temperature, top_p)
    lengths = {len(row) for row in found if row[-1] == EOS}
    assert len(lengths) > 2  # rows left the batch at different times …
    assert any(row[-1] != EOS and len(row) == LONGEST for row in found)  # … and some were cut off


def test_a_nearly_greedy_sample_is_greedy(model, prompts):
    uniforms = step_uniforms(0, 0, len(prompts), LONGEST)
    found = sample(model, prompts, uniforms, ends=[EOS], temperature=1e-4)
    for prompt, completion in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        assert completion == logits.argmax(-1).tolist()


def test_a_part_of_the_batch_gets_the_same_tokens(model, prompts):
    whole = sample(model, prompts, step_uniforms(7, 3, len(prompts), LONGEST), ends=[EOS])
    half = len(prompts) // 2 + 2  # inside a group
    uniforms = step_uniforms(7, 3, len(prompts), LONGEST)
    parts = [sample(model, prompts[part], uniforms[part], ends=[EOS]) for part in (slice(half), slice(half, None))]
    assert whole == parts[0] + parts[1]


def test_uniforms_of_a_row_do_not_depend_on_how_many_rows_there_are():
    assert torch.equal(step_uniforms(1, 2, 8, 5)[:3], step_uniforms(1, 2, 3, 5))
    assert not torch.equal(step_uniforms(1, 2, 8, 5), step_uniforms(1, 3, 8, 5))
    assert not torch.equal(step_uniforms(1, 2, 8, 5), step_uniforms(2, 2, 8, 5))


def test_several_end_tokens(model, prompts):
    ends = [EOS, 5, 9]
    found = sample(model, prompts, step_uniforms(0, 0, len(prompts), LONGEST), ends=ends)
    assert {row[-1] for row in found if len(row) < LONGEST} == set(ends)
    assert not any(token in ends for row in found for token in row[:-1])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (3.0, 0.9)])
def test_first_tokens_follow_the_distribution(model, temperature, top_p):
    rows, prompt = 20_000, [4, 8, 15]
    found = sample(model, [prompt] * rows, step_uniforms(11, 0, rows, 1), ends=[EOS], temperature=temperature, top_p=top_p)
    counts = np.bincount([row[0] for row in found], minlength=VOCABULARY)
    with torch.no_grad():
        chances = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).double().numpy()
    if top_p < 1:
        order = np.argsort(-chances)
        chances[order[np.searchsorted(np.cumsum(chances[order]), top_p) + 1 :]] = 0
    chances /= chances.sum()
    assert not counts[chances == 0].any()
    common = chances * rows >= 5
    expected = np.append(chances[common], chances[~common].sum()) * rows
    observed = np.append(counts[common], counts[~common].sum())
    seen = expected > 0
    assert stats.chisquare(observed[seen], expected[seen]).pvalue > 0.01


def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible():
    logits = torch.tensor([[-1e9, 0.0, 1.0, -1e9], [-1e9, 0.0, 1.0, -1e9]])
    uniforms = torch.tensor([2.0**-24, 1.0])
    assert draw(logits, uniforms, 1.0, 1.0).tolist() == [1, 2]
    assert draw(logits, uniforms, 1.0, 0.99).tolist() == [2, 1]
    assert draw(logits, uniforms, 1.0, 0.5).tolist() == [2, 2]
