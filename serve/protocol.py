"""The part of OpenAI's API that is served, as data."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pastry.engine.transformers_engine import Completion


class Refused(Exception):
    """An answer other than 200, in the shape OpenAI clients expect."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")  # clients send fields that change nothing here, such as `user`

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False

    def stops(self) -> list[str]:
        """Stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(_Request):
    prompt: str | list[str]


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(_Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


def ended(completions: list[Completion], stops: list[str]) -> list[tuple[str, str]]:
    """(text up to the first stop string, finish reason) of each completion."""
    result = []
    for completion in completions:
        cuts = [completion.text.find(stop) for stop in stops if stop and stop in completion.text]
        text = completion.text[: min(cuts)] if cuts else completion.text
        result.append((text, "stop" if cuts or completion.finished else "length"))
    return result


def envelope(kind: str, model: str, choices: list[dict], answers: list[list[Completion]]) -> dict[str, Any]:
    """A response's frame: id, time, choices, usage; `answers` holds the completions of each prompt."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    prompt_tokens = sum(answer[0].prompt_tokens for answer in answers)
    tokens = sum(completion.tokens for answer in answers for completion in answer)
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens},
    }
