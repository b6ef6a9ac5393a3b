"""The Ray Serve application: an OpenAI-compatible API over recipes.

serve run pastry_serve.app:build config=serve/config.yaml
"""

# serve.ingress pickles the routes as they are when the class is decorated: no postponed annotations here, and whatever a
# route calls is imported or defined above the class.

import json
import logging
import signal
import threading
import time
from pathlib import Path

import ray
import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from pastry.engine.transformers_engine import Completion, TransformersEngine
from pastry_serve.config import ServeConfig, load_serve_config
from pastry_serve.protocol import ChatRequest, CompletionRequest, Refused, ended, envelope
from pastry_serve.recipes import Generation, Kitchen

api = FastAPI(title="Pastry", description="Models with injected skills: the model's name is a recipe.")


@api.exception_handler(Refused)
async def _refused(request: Request, error: Refused) -> JSONResponse:
    return JSONResponse(error.body, error.status)


@api.exception_handler(RequestValidationError)
async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    problem = error.errors()[0]
    key = ".".join(part for part in problem["loc"] if isinstance(part, str) and part != "body")
    return JSONResponse(Refused(400, f"'{key}': {problem['msg']}" if key else problem["msg"], key or None).body, 400)


@serve.deployment
@serve.ingress(api)
class Server:
    """One replica: every target and skill in memory."""

    def __init__(self, config: ServeConfig):
        torch.set_num_threads(config.cpus_per_replica)
        self.config, self.started = config, int(time.time())
        self.kitchen = Kitchen(config)
        self._answer.set_max_batch_size(config.max_batch)
        self._answer.set_batch_wait_timeout_s(config.batch_wait_s)

    @serve.batch
    async def _answer(self, batch: list[Generation]) -> list[list[Completion]]:
        return await self.kitchen.answer(batch)

    @api.get("/health")
    async def health(self) -> dict:
        """Ready: the models are in memory."""
        return {"status": "ok", "targets": list(self.config.targets), "skills": list(self.config.skills)}

    @api.get("/v1/models")
    async def models(self) -> dict:
        """Targets alone, and each with each skill."""
        names = [*self.config.targets, *(f"{t}+{s}" for t in self.config.targets for s in self.config.skills)]
        entries = [{"id": name, "object": "model", "created": self.started, "owned_by": "pastry"} for name in names]
        return {"object": "list", "data": entries}

    @api.post("/v1/completions")
    async def completions(self, request: CompletionRequest) -> dict:
        """Continue prompts as they stand."""
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if not prompts:
            raise Refused(400, "'prompt': expected at least one", "prompt")
        answers = await self._complete(request, prompts, request.max_tokens)
        flat = [completion for answer in answers for completion in answer]
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(ended(flat, request.stops()))
        ]
        return envelope("text_completion", request.model, choices, answers)

    @api.post("/v1/chat/completions")
    async def chat(self, request: ChatRequest) -> dict:
        """Answer a conversation, written with the target's chat template."""
        tokenizer = self._engine(request.model).tokenizer
        if tokenizer.chat_template is None:
            raise Refused(400, f"'{request.model}' has no chat template: use /v1/completions", "model")
        messages = [message.model_dump() for message in request.messages]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        answers = await self._complete(request, [prompt], request.max_completion_tokens or request.max_tokens)
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text.strip()}, "logprobs": None, "finish_reason": reason}
            for i, (text, reason) in enumerate(ended(answers[0], request.stops()))
        ]
        return envelope("chat.completion", request.model, choices, answers)

    def _engine(self, model: str) -> TransformersEngine:
        return self.kitchen.engines[self.kitchen.recipe(model).target]

    async def _complete(self, request, prompts: list[str], max_tokens: int | None) -> list[list[Completion]]:
        limits, recipe = self.config, self.kitchen.recipe(request.model)
        if request.stream:
            raise Refused(400, "'stream': streaming is not served yet; leave it out", "stream", "unsupported")
        wanted = min(64, limits.max_tokens) if max_tokens is None else max_tokens
        if wanted > limits.max_tokens:
            raise Refused(400, f"'max_tokens': {wanted} asked, at most {limits.max_tokens} served", "max_tokens")
        if request.n > limits.max_choices:
            raise Refused(400, f"'n': {request.n} asked, at most {limits.max_choices} served", "n")
        tokenizer = self._engine(request.model).tokenizer
        for prompt in prompts:
            tokens = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            if not 0 < tokens <= limits.max_prompt_tokens:
                raise Refused(400, f"the prompt has {tokens} tokens, 1 to {limits.max_prompt_tokens} are served", "prompt")
        shared = {"max_tokens": wanted, "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        asked = [self.kitchen.seeded(Generation(recipe, prompt, choices=request.n, **shared)) for prompt in prompts]
        return [await pending for pending in [self._answer(generation) for generation in asked]]


def build(args: dict | ServeConfig) -> Application:
    """The application; `args`: a ServeConfig, or {"config": path of its YAML} as `serve run` and `serve deploy` give it."""
    if not isinstance(args, ServeConfig):
        args = load_serve_config(Path(args["config"]) if "config" in args else None)
    options = {"num_replicas": args.replicas, "ray_actor_options": {"num_cpus": args.cpus_per_replica}}
    return Server.options(**options).bind(args)


def run(config: ServeConfig, blocking: bool) -> None:
    """Serve on `config.host:port` until interrupted (or, not blocking, until `serve.shutdown()`)."""
    from pastry.pipeline.workers import connect
    from pastry.registry.deployments import Deployment

    models = {name: Path(path) for name, path in (config.targets | config.skills).items()}
    deployment = Deployment(models, config.host, config.port)
    connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config={"log_level": logging.WARNING})
    serve.run(build(config), name="pastry", route_prefix="/")
    target = next(iter(config.targets))
    model = "+".join([target, *list(config.skills)[:1]])
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "temperature": 0})
    print(
        f"serving {', '.join([*config.targets, *(f'+{skill}' for skill in config.skills)])} on http://{config.host}:{config.port}"
    )
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        print("careful: there are no keys yet; whoever reaches this address can ask")
    print(f"try: curl http://{config.host}:{config.port}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    if blocking:
        deployment.record()
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        print("stopping")
        serve.delete("pastry")
        ray.shutdown()
        deployment.withdraw()
