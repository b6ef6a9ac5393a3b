"""A real Serve application on a free port, compared with the engine in this process."""

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.config import LabSettings, ModelShape
from pastry.domains import load_corpus, load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.vectors.extract import extract
from pastry.vectors.modules import parse_lambda
from pastry_serve.config import ServeConfig

pytestmark = pytest.mark.slow
LAB = LabSettings(kind="lab", entities=6)
RECIPES = {
    "target": {},
    "target+skill": {"skill": 1.0},
    "target+skill:0.5": {"skill": 0.5},
    "target+skill:-1": {"skill": -1.0},
    "target+skill:mlp=1,all=0": {"skill": parse_lambda("mlp=1,all=0", "here")},
    "target+mean(skill,other):0.5": {"skill": 0.25, "other": 0.25},
}


def checkpoint(directory, seed):
    load_corpus(LAB, 0).save_tokenizer(directory)
    tokens = AutoTokenizer.from_pretrained(directory)
    shape = ModelShape(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **shape.model_dump(), vocab_size=len(tokens), initializer_range=0.5, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    target, end = checkpoint(root / "target", 0), checkpoint(root / "end", 1)
    extract(end, target, root / "skill", name="skill")
    extract(checkpoint(root / "other-end", 2), target, root / "other", name="other")
    return {"target": str(target), "skill": str(root / "skill"), "other": str(root / "other")}


@pytest.fixture(scope="module")
def url(models):
    import ray
    from ray import serve

    from pastry_serve.app import run

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = ServeConfig(
        targets={"target": models["target"]},
        skills={name: models[name] for name in ("skill", "other")},
        port=port,
        batch_wait_s=0.05,
        max_tokens=32,
    )
    run(config, blocking=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def call(url, body=None):
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def expected(models):
    """Every recipe's greedy answers, computed in this process."""
    prompts = [question.prompt for question in load_domain("ship", LAB, 0).questions(1)][:12]
    engine = TransformersEngine(models["target"], {name: models[name] for name in ("skill", "other")})
    answers = {}
    for recipe, lambdas in RECIPES.items():
        engine.attach(lambdas)
        answers[recipe] = {prompt: engine.generate([prompt], max_new_tokens=8)[0] for prompt in prompts}
    return answers


def test_the_recipes_answer_differently(expected):
    texts = [tuple(completion.text for completion in answers.values()) for answers in expected.values()]
    assert len(set(texts)) == len(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_completions_equal_the_engine(url, expected, recipe):
    for prompt, completion in list(expected[recipe].items())[:3]:
        status, body = call(f"{url}/v1/completions", {"model": recipe, "prompt": prompt, "max_tokens": 8, "temperature": 0})
        assert status == 200
        assert body["object"] == "text_completion" and body["model"] == recipe
        assert body["choices"][0]["text"] == completion.text
        assert body["choices"][0]["finish_reason"] == ("stop" if completion.finished else "length")
        assert body["usage"] == {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.tokens,
            "total_tokens": completion.prompt_tokens + completion.tokens,
        }


def test_chat_uses_the_chat_template(url, expected):
    prompt, completion = next(iter(expected["target+skill"].items()))
    content = prompt.removeprefix("<bos> <q> ").removesuffix(" <a>")
    messages = [{"role": "system", "content": "ignored"}, {"role": "user", "content": content}]
    status, body = call(
        f"{url}/v1/chat/completions", {"model": "target+skill", "messages": messages, "max_tokens": 8, "temperature": 0}
    )
    assert status == 200 and body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": completion.text.strip()}


def test_no_answer_is_computed_with_another_recipes_weights(url, expected):
    asked = [(recipe, prompt) for prompt in expected["target"] for recipe in RECIPES] * 2

    def ask(pair):
        recipe, prompt = pair
        return call(f"{url}/v1/completions", {"model": recipe, "prompt": prompt, "max_tokens": 8, "temperature": 0})

    with ThreadPoolExecutor(16) as pool:
        for (recipe, prompt), (status, body) in zip(asked, pool.map(ask, asked), strict=True):
            assert status == 200
            assert body["choices"][0]["text"] == expected[recipe][prompt].text, recipe


def test_sampling_with_a_seed_repeats_itself(url, expected):
    body = {"model": "target", "prompt": next(iter(expected["target"])), "max_tokens": 8, "temperature": 1.5, "seed": 7, "n": 3}
    first, again = call(f"{url}/v1/completions", body)[1], call(f"{url}/v1/completions", body)[1]
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2] and len(set(texts)) > 1
    assert texts != [choice["text"] for choice in call(f"{url}/v1/completions", body | {"seed": 8})[1]["choices"]]


def test_a_stop_string_ends_the_text(url, expected):
    prompt, completion = next((p, c) for p, c in expected["target"].items() if len(c.text.split()) > 2)
    word = completion.text.split()[1]
    body = {"model": "target", "prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": [word]}
    choice = call(f"{url}/v1/completions", body)[1]["choices"][0]
    assert choice["text"] == completion.text[: completion.text.find(word)] and choice["finish_reason"] == "stop"


def test_models_and_health(url):
    assert [entry["id"] for entry in call(f"{url}/v1/models")[1]["data"]] == ["target", "target+skill", "target+other"]
    assert call(f"{url}/health") == (200, {"status": "ok", "targets": ["target"], "skills": ["skill", "other"]})


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "targt"}, 404, "did you mean target"),
        ({"model": "target+skil"}, 404, "did you mean skill"),
        ({"model": "target+skill:9"}, 400, "outside -2 … 4"),
        ({"model": "target+skill:high"}, 400, "finite number"),
        ({"model": "target+skill:nan"}, 400, "finite number"),
        ({"model": "target+skill@champion"}, 400, "versions are not served yet"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": ""}, 400, "0 tokens"),
        ({"prompt": "a " * 2000}, 400, "2000 tokens"),
        ({"max_tokens": 33}, 400, "at most 32"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 1000}, 400, "at most 16"),
        ({"stream": True}, 400, "streaming"),
        (b"{", 400, "JSON"),
    ],
)
def test_mistakes_get_openais_error_shape(url, change, status, said):
    good = {"model": "target", "prompt": "what is", "max_tokens": 4}
    code, body = call(f"{url}/v1/completions", change if isinstance(change, bytes) else good | change)
    assert code == status
    assert said in body["error"]["message"] and body["error"]["type"] == "invalid_request_error"
