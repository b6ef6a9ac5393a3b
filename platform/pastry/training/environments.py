"""Environments of multi-turn episodes under the rewards' policy: time-outs, retries, failures that are counted."""

from __future__ import annotations

import faulthandler
import inspect
import math
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from numbers import Real
from typing import Any

from pastry.config.rewards import RewardSettings
from pastry.domains.base import ToolError
from pastry.errors import PastryError
from pastry.training.completion import Failure, described

TOLD_THE_MODEL = "The environment failed. The episode is over and does not count."


class Episode:
    """An environment, one episode after another; its public methods are the model's tools (TRL), added by `guarded`.

    A step that raises is tried again under the policies retry and drop_group. A tool that hangs is not: its environment is
    left behind, and the next episode gets a new one. What fails for good is kept for `episode_reward`, so that the reward
    functions do what the policy says; raised here, TRL would tell it to the model as a tool's error and go on. What is meant
    for the model does go to it: ToolError, and arguments that do not fit the tool (TypeError).

    Every environment lives in a thread of its own. A call that never gives the interpreter's lock back can only be ended with
    the whole worker, which is done, after twice the time; the worker's log then has the traceback. Work that may end so belongs
    in a process or a server behind the environment.
    """

    _make: Callable[[], object]
    _settings: RewardSettings
    _failures: Counter
    gives_reward: bool
    """The environment has `get_reward`."""

    def __init__(self):
        self._failure: Failure | None = None
        self._thread: _EnvironmentThread | None = None

    def reset(self, **row) -> str | None:
        self._failure = None
        return self._tried("reset", row)

    def _tried(self, method: str, arguments: dict, meant_for_the_model: type[Exception] | tuple = ()) -> Any:
        """What the environment's method returns; None, and the failure kept, when no try succeeds."""
        for _ in range(self._settings.tries):
            self._thread = self._thread or _EnvironmentThread(self._make)
            try:
                result = self._thread.call(method, arguments, self._settings.timeout_seconds)
                if method != "get_reward" or (isinstance(result, Real) and math.isfinite(result)):
                    return result
                failure = Failure("environment_not_finite", f"get_reward gave {result!r}")
            except meant_for_the_model:
                raise
            except _Hang:
                self._thread = None
                failure = Failure(
                    "environment_timed_out", f"{method} took over {self._settings.timeout_seconds:g} s", final=method != "reset"
                )
            except Exception as error:
                failure = Failure("environment_raised", f"{method}: {described(error)}")
            self._failures[failure.kind] += 1
            if failure.final:
                break
        self._failure = failure
        return None


def guarded(make: Callable[[], object], settings: RewardSettings, failures: Counter) -> type[Episode]:
    """What TRL takes as `environment_factory` in place of `make`: episodes with the same tools. Failed tries are counted in
    `failures`.

    Makes one environment to see its methods. Raises PastryError when it cannot be made, has no `reset` or is asynchronous.
    """
    try:
        environment = type(make())
    except Exception as error:
        raise PastryError(f"the domain's environment cannot be made: {described(error)}") from None
    methods = {name: method for name, method in inspect.getmembers(environment, inspect.isfunction) if name[0] != "_"}
    coroutines = [name for name, method in methods.items() if inspect.iscoroutinefunction(method)]
    if "reset" not in methods or coroutines:
        found = f"asynchronous methods ({', '.join(coroutines)})" if coroutines else "no method 'reset'"
        raise PastryError(f"environment {environment.__name__} has {found}; give it plain methods, 'reset' among them")
    tools = {name: _tool(method) for name, method in methods.items() if name not in ("reset", "get_reward")}
    # Underscores: TRL takes every public function of the class for a tool.
    shared = {"_make": staticmethod(make), "_settings": settings, "_failures": failures}
    shared["gives_reward"] = "get_reward" in methods
    return type(environment.__name__, (Episode,), tools | shared)


def episode_reward(episode: Episode) -> float | Failure | None:
    """The environment's own reward, None if it gives none, or why the episode does not count."""
    reward = None
    if episode._failure is None and episode.gives_reward:
        reward = episode._tried("get_reward", {})
    return episode._failure or reward


def _tool(method: Callable) -> Callable:
    signature = inspect.signature(method)

    @wraps(method)
    def tool(episode: Episode, **arguments):
        signature.bind(episode, **arguments)
        if episode._failure:
            return TOLD_THE_MODEL
        result = episode._tried(method.__name__, arguments, meant_for_the_model=ToolError)
        return TOLD_THE_MODEL if episode._failure else result

    return tool


class _Hang(Exception):
    pass


class _EnvironmentThread:
    """A thread in which one environment is made and called, so that it may hold what belongs to a thread."""

    def __init__(self, make: Callable[[], object]):
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(make,), name="pastry-environment", daemon=True).start()

    def call(self, method: str, arguments: dict, timeout: float) -> Any:
        """What `method` returns or raises; _Hang, and the thread ends after the call, when it takes over `timeout` seconds."""
        answer: Future = Future()
        faulthandler.dump_traceback_later(2 * timeout, exit=True, file=sys.__stderr__)  # it needs no interpreter's lock
        self._calls.put((answer, method, arguments))
        try:
            return answer.result(timeout)
        except TimeoutError:
            if answer.done():  # the method's own
                raise
            self._calls.put(None)
            raise _Hang from None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _serve(self, make: Callable[[], object]) -> None:
        environment = None
        for answer, method, arguments in iter(self._calls.get, None):
            try:
                if environment is None:
                    environment = make()
                answer.set_result(getattr(environment, method)(**arguments))
            except BaseException as error:
                answer.set_exception(error)
