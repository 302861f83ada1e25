"""One piece of work with llama.cpp that ends by itself: both sides of it, the caller's and the child's.

The child tells how far it is (``advanced``) and answers once (``done`` or ``failed``).
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modelpack.engine.entry import enter
from modelpack.engine.process import Child
from modelpack.engine.worker import explain_refusal, machine_memory
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.progress import Progress
from modelpack.small_file import read_small_file

Advance = Callable[[int], None]


def run_task(
    module: str, configuration: Mapping[str, Any], *, label: str, name: str, timeout: float, progress: Progress
) -> dict[str, Any]:
    """Run ``module`` in a child until it answers. ``label`` is the step's, ``name`` what errors call the model.

    Raises InvalidInputError where the child finds the input unfit, WorkerCrashedError, WorkerTimeoutError after
    ``timeout`` seconds, and what loading a model raises.
    """
    child = Child(module, {"memory_limit": machine_memory(), **configuration})
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        stack.callback(child.close)
        step = None
        while True:
            event = child.wait_for_event(max(deadline - time.monotonic(), 0.0), label)
            if event["event"] == "advanced":
                step = step or stack.enter_context(progress.step(label, total=event["total"], unit="chunks"))
                step.advance(1)
            elif event["event"] == "unfit":
                raise InvalidInputError(event["message"])
            elif event["event"] == "failed":
                raise explain_refusal(name, event["message"], child)
            else:
                answer: dict[str, Any] = event["answer"]
                return answer


class Unfit(Exception):  # noqa: N818  # not a failure of the child: it says what the caller got wrong
    """Raised in a child: what it was given does not do, and why."""


def serve_task(work: Callable[[dict[str, Any], Advance], dict[str, Any]]) -> None:
    """The child: carry ``work`` out on its configuration. ``work`` calls its second argument, with the number of chunks
    there are, whenever one more is done."""
    configuration, channel, _ = enter()

    def tell(event: str, **facts: Any) -> None:
        channel.write(json.dumps({"event": event, **facts}) + "\n")

    try:
        answer = work(configuration, lambda total: tell("advanced", total=total))
    except Unfit as error:
        tell("unfit", message=str(error))
    except Exception as error:
        tell("failed", message=str(error) or type(error).__name__)
        raise
    else:
        tell("done", answer=answer)


def read_text(path: Path, limit: int = 64 << 20) -> str:
    """A text to run a model on. Raises InvalidInputError."""
    try:
        return read_small_file(path, limit=limit, pipe=True).decode("utf-8")
    except NotFoundError as error:
        raise InvalidInputError(str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not text in UTF-8") from error
