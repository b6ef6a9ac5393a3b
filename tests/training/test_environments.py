"""Episodes: what an environment's failures do, alone and in TRL's GRPO with a model that really calls the tool."""

import inspect
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from pastry.config.rewards import RewardSettings
from pastry.domains.base import ToolError
from pastry.errors import PastryError
from pastry.training.completion import Failure
from pastry.training.environments import TOLD_THE_MODEL, episode_reward, guarded
from pastry.training.rewards import Rewards
from tests.training.reward_domains import Guessing, GuessingDomain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def begin():
    """Begin an episode of an order. Gives it and what was counted."""

    def begin(order, **settings):
        failures = Counter()
        settings = RewardSettings.model_validate({"timeout_seconds": 0.5, **settings})
        episode = guarded(Guessing, settings, failures)()
        episode.reset(question={"prompt": order}, prompt=[])
        return episode, failures

    return begin


def test_an_episode_in_order(begin):
    episode, failures = begin("nothing")
    assert episode.guess(number=3) == "wrong" and episode_reward(episode) == 0
    assert episode.guess(number=7) == "right" and episode_reward(episode) == 1
    environment = episode._thread
    episode.reset(question={"prompt": "nothing"})
    assert episode_reward(episode) == 0 and episode._thread is environment  # made once, reset often
    assert not failures


def test_tools_look_to_trl_like_the_environments_own():
    episode = guarded(lambda: Guessing(), RewardSettings(), Counter())
    assert episode.__name__ == "Guessing"
    public = [name for name, _ in inspect.getmembers(episode, inspect.isfunction) if name[0] != "_"]
    assert public == ["guess", "reset"] and episode.guess.__doc__ == Guessing.guess.__doc__


@pytest.mark.parametrize(
    ("order", "kind", "cause"),
    [
        ("reset raises", "environment_raised", "reset: RuntimeError: the room is on fire"),
        ("guess raises", "environment_raised", "guess: RuntimeError: the room is on fire"),
        ("get_reward raises", "environment_raised", "get_reward: RuntimeError: the room is on fire"),
        ("get_reward objects", "environment_raised", "get_reward: ToolError: not allowed"),
        ("reset hangs", "environment_timed_out", "reset took over 0.5 s"),
        ("guess hangs", "environment_timed_out", "guess took over 0.5 s"),
        ("get_reward nan", "environment_not_finite", "get_reward gave nan"),
        ("get_reward none", "environment_not_finite", "get_reward gave None"),
    ],
)
def test_a_failed_step_fails_the_episode_and_is_counted(begin, order, kind, cause):
    start = time.monotonic()
    episode, failures = begin(order)
    episode.guess(number=7)
    assert (episode.guess(number=7) == TOLD_THE_MODEL) is not order.startswith("get_reward")
    failure = episode_reward(episode)
    assert isinstance(failure, Failure) and failure.kind == kind and failure.cause.startswith(cause)
    assert failures == {kind: 1} and time.monotonic() - start < 2.5
    episode.reset(question={"prompt": "nothing"})
    assert episode.guess(number=7) == "right" and episode_reward(episode) == 1  # the next episode is not concerned


@pytest.mark.parametrize("step", ["reset", "guess", "get_reward"])
def test_a_step_that_raises_once_is_tried_again(begin, step):
    episode, failures = begin(f"{step} raises once", on_failure="retry")
    assert episode.guess(number=7) == "right" and episode_reward(episode) == 1
    assert failures == {"environment_raised": 1}


def test_a_tool_that_hangs_is_not_asked_again_in_another_environment(begin):
    episode, failures = begin("guess hangs", on_failure="retry", attempts=5)
    assert episode.guess(number=7) == TOLD_THE_MODEL
    assert failures == {"environment_timed_out": 1}


def test_what_is_the_models_fault_is_for_the_model(begin):
    episode, failures = begin("guess objects")
    with pytest.raises(ToolError, match="not allowed"):
        episode.guess(number=7)
    with pytest.raises(TypeError, match="missing a required argument: 'number'"):
        episode.guess(nimber=7)
    assert episode_reward(episode) == 0 and not failures


LOCKED = """
from collections import Counter
from pastry.config.rewards import RewardSettings
from pastry.training.environments import guarded
from tests.training.reward_domains import Guessing
episode = guarded(Guessing, RewardSettings(timeout_seconds=0.5), Counter())()
episode.reset(question={"prompt": "guess locks"})
episode.guess(number=7)
"""


def test_a_tool_that_keeps_the_interpreters_lock_ends_the_worker_and_leaves_a_traceback():
    ended = subprocess.run([sys.executable, "-c", LOCKED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr and "reward_domains.py" in ended.stderr and "in guess" in ended.stderr


def test_environments_that_cannot_be_used_are_refused():
    class NoReset:
        pass

    class Asynchronous(Guessing):
        async def look(self):
            """Look."""

    def broken():
        raise OSError("no such server")

    for make, message in (
        (NoReset, "no method 'reset'"),
        (Asynchronous, "asynchronous methods .look."),
        (broken, "no such server"),
    ):
        with pytest.raises(PastryError, match=message):
            guarded(make, RewardSettings(), Counter())


# Part two: in GRPO.

SPECIAL = ["<|pad|>", "<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>"]
CHAT_TEMPLATE = """\
{%- if tools %}{{- 'tools: ' }}{%- for tool in tools %}{{- tool.function.name + '\n' }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# How transformers finds the tool calls in what the model wrote.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
CALL = {"type": "function", "function": {"name": "guess", "arguments": {"number": 7}}}


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and those of the chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = token_decoders.ByteLevel()
    bytewise.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<|pad|>", eos_token="<|im_end|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny Llama that has learned one thing by heart: call the tool with 7, then repeat what it said."""
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    special = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape, **special))
    rows = []
    for order in ORDERS:
        episode = [
            {"role": "user", "content": order},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "guess", "content": "right"},
            {"role": "assistant", "content": "right"},
        ]
        rows.append(tokenizer.apply_chat_template(episode, tools=[Guessing.guess], return_dict=False, tokenize=True))
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


ORDERS = ["nothing", "guess raises", "guess objects"]


@pytest.fixture
def train(tokenizer, model, tmp_path):
    """One step of GRPO on the orders' episodes, two each. Gives the trainer; what it logged is in its state."""
    made = []

    def train(*orders, **settings):
        domain = GuessingDomain(*orders)
        settings = RewardSettings.model_validate({"environment": 0.5, "timeout_seconds": 5, **settings})
        rewards = Rewards(domain, settings, group_size=2, eos={tokenizer.eos_token_id}, cache=tmp_path / "judge.db")
        made.append(rewards)
        config = GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2 * len(orders),
            num_generations=2,
            max_steps=1,
            max_completion_length=120,
            max_tool_calling_iterations=3,
            temperature=0.01,
            reward_weights=rewards.weights,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = [{"prompt": [{"role": "user", "content": q.prompt}], "question": vars(q)} for q in domain.questions(1)]
        trainer = GRPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            reward_funcs=rewards.functions,
            environment_factory=rewards.environment,
        )
        trainer.train()
        return trainer

    yield train
    for rewards in made:
        rewards.close()


@pytest.mark.slow
def test_the_models_call_reaches_the_tool_and_the_reward_the_model(train):
    trainer = train("nothing")
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] == 1 and logged["tools/failure_frequency"] == 0
    assert logged["rewards/environment/mean"] == 1 and logged["rewards/correct/mean"] == 1
    assert logged["reward"] == pytest.approx(1.5)
    counts = {name: value for name, value in logged.items() if name.startswith("failures/")}
    assert len(counts) == 7 and not any(counts.values())
    roles = [message["role"] for message in trainer._logs["completion"][0]]
    assert roles == ["assistant", "tool", "assistant"]


@pytest.mark.slow
def test_a_tool_error_is_told_to_the_model_and_the_episode_goes_on(train):
    trainer = train("guess objects")
    logged = trainer.state.log_history[0]
    assert logged["tools/failure_frequency"] == 1 and logged["failures/environment_raised"] == 0
    assert logged["rewards/environment/mean"] == 0
    [tool] = {message["content"] for message in trainer._logs["completion"][0] if message["role"] == "tool"}
    assert tool == "{'error': 'not allowed'}"


@pytest.mark.slow
def test_a_tool_that_raises_stops_the_run_and_says_why(train):
    with pytest.raises(
        PastryError, match="question 'q1' has no reward: environment raised: guess: RuntimeError: the room is on"
    ):
        train("nothing", "guess raises")


@pytest.mark.slow
def test_a_tool_that_raises_takes_its_group_out_of_the_step(train):
    trainer = train("nothing", "guess raises", on_failure="drop_group", attempts=3)
    logged = trainer.state.log_history[0]
    assert logged["failures/environment_raised"] == 2 * 3 and logged["failures/dropped_groups"] == 1
    assert logged["rewards/environment/mean"] == 1 and logged["reward"] == pytest.approx(1.5)
