"""modelpack run and serve."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modelpack.cli.app import App, command
from modelpack.cli.terminal import printable
from modelpack.errors import InvalidInputError, ModelpackError
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.engine.worker import ChatAnswer, Worker

_DEVICES = click.Choice(["auto", "gpu", "cpu"])


@command("run")
@click.argument("reference", metavar="REF")
@click.argument("prompt", required=False)
@click.option("--system", help="A system message to begin with.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length of an answer.  [default: until the model stops]")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0 repeats itself.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--context", type=click.IntRange(min=16), help="Tokens of context.  [default: the model's, up to 8192]")
@click.option(
    "--device", type=_DEVICES, default="auto", show_default=True, help="gpu fails unless a GPU does the work."
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
def run(
    app: App,
    reference: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    context: int | None,
    device: Literal["auto", "gpu", "cpu"],
    threads: int | None,
) -> None:
    """Ask a model, or chat with it when there is no PROMPT.

    \b
    modelpack run tiny-llama:v1 "What is the capital of France?"
    echo "Summarise this." | modelpack run tiny-llama:v1
    modelpack run tiny-llama:v1
    """
    from modelpack.engine.worker import Worker, WorkerOptions

    for what, text in (("PROMPT", prompt), ("--system", system)):
        with _utf8(what):
            (text or "").encode()
    stored, path = _open_model(app, Reference.parse(reference))
    if prompt is None and not sys.stdin.isatty():
        with _utf8("standard input"):
            prompt = sys.stdin.read().strip()
            prompt.encode()
        if not prompt:
            raise InvalidInputError("the prompt on standard input is empty")
    if prompt is None and app.json_output:
        raise InvalidInputError("a chat has no JSON answer; give a PROMPT")
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options = WorkerOptions(device=device, context=context, threads=threads)
    with app.progress.step(f"loading {stored.reference}"):
        worker = Worker.start(path, options, name=str(stored.reference))
    with worker:
        _require_device(device, worker)
        app.note(f"device: {worker.device}")
        messages = [{"role": "system", "content": system}] if system else []
        if prompt is None:
            _chat(worker, messages, sampling)
            return
        answer = _ask(worker, [*messages, {"role": "user", "content": prompt}], sampling, stream=not app.json_output)
    if app.json_output:
        document = {
            "reference": str(stored.reference),
            "digest": str(stored.descriptor.digest),
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "tokens_per_second": answer.tokens_per_second,
            "device": str(worker.device),
        }
        app.answer(document, "")
        return
    click.echo()
    speed = answer.tokens_per_second
    app.note(f"{answer.completion_tokens} tokens" + (f", {speed:.1f} tokens/s" if speed else ""))


@contextlib.contextmanager
def _utf8(what: str) -> Iterator[None]:
    """Around reading and encoding a text: Python brings bytes that are none as far as the first encoding of them."""
    try:
        yield
    except UnicodeError as error:
        raise InvalidInputError(f"{what} is not UTF-8 text") from error


def _open_model(app: App, reference: Reference) -> tuple[Any, Path]:
    """The stored model, if it may run, and its weights."""
    from modelpack import catalog
    from modelpack.cli.places import require_trusted

    stored = catalog.find_model(app.store, reference)
    require_trusted(app, stored.reference, stored.descriptor)
    return stored, catalog.weights_path(app.store, stored.model)


def _require_device(device: str, worker: "Worker") -> None:
    from modelpack.errors import CheckFailedError

    if device == "gpu" and not worker.device.is_gpu:
        raise CheckFailedError(f"a GPU was asked for, but the model runs on {worker.device}")


def _ask(worker: "Worker", messages: list[dict[str, str]], sampling: dict[str, Any], *, stream: bool) -> "ChatAnswer":
    def show(text: str) -> None:
        click.echo(printable(text), nl=False)

    on_text = show if stream else None
    if worker.has_chat_template:
        return worker.chat(messages, on_text=on_text, **sampling)
    # A base model has no turns: it goes on where the text ends.
    return worker.complete(messages[-1]["content"], on_text=on_text, **sampling)


_CHAT_HELP = """/bye    end the chat (or Ctrl-D)
/clear  forget what was said
/help   this list
Ctrl-C  stop an answer"""


def _chat(worker: "Worker", system: list[dict[str, str]], sampling: dict[str, Any]) -> None:
    """A conversation on the terminal, with the editing and history that readline gives."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it is what gives input() a history

    click.echo("Type a message, or /help.", err=True)
    messages = list(system)
    while True:
        try:
            line = input(">>> ").strip()
            line.encode()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\nUse /bye or Ctrl-D to end the chat.", err=True)
            continue
        except UnicodeError:
            click.echo("That is not UTF-8 text.", err=True)
            continue
        if line in ("/bye", "/exit", "/quit"):
            return
        if line == "/clear":
            messages = list(system)
        elif line in ("/help", "/?"):
            click.echo(_CHAT_HELP, err=True)
        elif line.startswith("/"):
            click.echo(f"There is no {line.split()[0]}; /help lists what there is.", err=True)
        elif line:
            messages = _turn(worker, [*messages, {"role": "user", "content": line}], sampling)


def _turn(worker: "Worker", messages: list[dict[str, str]], sampling: dict[str, Any]) -> list[dict[str, str]]:
    """One question and its answer; what was said so far, or without the question where it had no answer."""
    try:
        answer = _ask(worker, messages, sampling, stream=True)
    except KeyboardInterrupt:
        click.echo("\n(stopped)", err=True)
        return messages[:-1]
    except ModelpackError as error:
        if not worker.is_running:
            raise
        click.echo(f"\n{error}", err=True)
        return messages[:-1]
    click.echo("\n")
    return [*messages, {"role": "assistant", "content": answer.text}]


@command("serve")
@click.argument("references", nargs=-1, metavar="[REF...]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--unix-socket", type=click.Path(path_type=Path), help="Listen on a socket file instead.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Clients must send this key.")
@click.option("--idle-timeout", type=click.FloatRange(min=0), default=300, show_default=True, help="Seconds to unload.")
@click.option(
    "--max-loaded", type=click.IntRange(min=1), default=1, show_default=True, help="Models in memory at once."
)
@click.option("--context", type=click.IntRange(min=16), help="Tokens of context.  [default: the model's, up to 8192]")
@click.option("--device", type=_DEVICES, default="auto", show_default=True, help="Where models run.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
def serve(
    app: App,
    references: tuple[str, ...],
    host: str,
    port: int,
    unix_socket: Path | None,
    api_key_file: Path | None,
    idle_timeout: float,
    max_loaded: int,
    context: int | None,
    device: Literal["auto", "gpu", "cpu"],
    threads: int | None,
) -> None:
    """Serve models behind an OpenAI-compatible API: all in the store, or those named.

    A model loads on its first request and is unloaded when idle. Other machines reach it only with --host, and then
    --api-key-file (or MODELPACK_API_KEY) is required.

    \b
    modelpack serve
    curl http://127.0.0.1:8080/v1/models
    """
    from modelpack.cli.models import StoreCatalog
    from modelpack.engine.worker import WorkerOptions
    from modelpack.server.app import ServerOptions
    from modelpack.server.app import serve as serve_models

    options = ServerOptions(
        host=host,
        port=port,
        unix_socket=unix_socket,
        worker=WorkerOptions(device=device, context=context, threads=threads),
        idle_timeout=idle_timeout,
        max_loaded=max_loaded,
        api_key=_api_key(app, api_key_file),
    )
    models = StoreCatalog(app, tuple(Reference.parse(text) for text in references))
    for reference in references:
        models.path(reference)  # a name that cannot be served is better known now than at the first request

    def ready(address: str) -> None:
        app.answer({"url": address}, address)
        sys.stdout.flush()

    # Being told to stop is how a server ends well.
    with contextlib.suppress(KeyboardInterrupt):
        serve_models(models, options, on_ready=ready)


def _api_key(app: App, path: Path | None) -> str | None:
    """The key that clients must send. A file without one is a mistake: it must not open the server to everybody."""
    if path is None:
        with _utf8("MODELPACK_API_KEY"):
            key = app.settings.environment.get("MODELPACK_API_KEY", "")
            key.encode()
        return key or None
    with _utf8(str(path)):
        key = read_small_file(path, limit=4096, pipe=True).decode().strip()
    if not key:
        raise InvalidInputError(f"{path} holds no key")
    return key
