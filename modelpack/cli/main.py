"""The command group and the last line of defence: every way a command can end becomes an exit code here."""

import gc
import importlib
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from modelpack import __version__
from modelpack.cli import failures
from modelpack.cli.terminal import json_text, printable
from modelpack.errors import ModelpackError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Command -> its module, attribute and line of help, so that --help and completion import no command at all.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "build": ("build", "build", "Convert, quantize and package a model into the local store."),
    "push": ("registry", "push", "Send a model to a registry."),
    "pull": ("registry", "pull", "Fetch a model whose signature the policy allows."),
    "verify": ("verify", "verify", "Check who signed a model, every byte, and how it behaves."),
    "smoke": ("smoke", "smoke", "See how a model behaves."),
    "run": ("run", "run", "Ask a model, or chat with it."),
    "serve": ("run", "serve", "Serve models behind an OpenAI-compatible API."),
    "keygen": ("trust", "keygen", "Make a signing key."),
    "key": ("key", "key", "Show what a key is."),
    "sign": ("trust", "sign", "Sign a model in a registry or in the store."),
    "attest": ("evidence", "attest", "Sign a statement about a model."),
    "trust": ("trust", "trust", "Say whose signatures count."),
    "policy": ("policy", "policy", "Look at the policy: who may sign what."),
    "lock": ("lock", "lock", "Write down which digests references stand for."),
    "login": ("registry", "login", "Log in to a registry."),
    "logout": ("registry", "logout", "Forget a registry's credentials."),
    "list": ("store", "list_models", "List the models in the store."),
    "inspect": ("store", "inspect", "Show what a model says about itself."),
    "tree": ("evidence", "tree", "Show all that hangs on an artifact."),
    "why": ("evidence", "why", "Say where a model came from, and who says so."),
    "tag": ("store", "tag", "Give a stored model another name."),
    "rm": ("store", "remove", "Remove a model's tag from the store."),
    "df": ("store", "df", "Show what the store holds and what it takes."),
    "prune": ("store", "prune", "Free what nothing in the store refers to."),
    "fsck": ("store", "fsck", "Check every byte of the store, and repair it."),
    "copy": ("copy", "copy", "Copy an artifact between registries, stores, layouts and archives."),
    "promote": ("promote", "promote", "Move an approved model on to another repository."),
    "bundle": ("copy", "bundle", "Artifacts in one file, for where no network goes."),
    "tags": ("copy", "tags", "List the tags of a repository."),
    "index": ("index", "index", "List the variants of a model under one tag."),
    "export-view": ("views", "export_view", "Give a model another manifest, for other tools."),
    "unpack": ("views", "unpack", "Make the files of a packed model usable."),
    "compare": ("quality", "compare", "Measure what a quantized variant lost."),
    "converter": ("converter", "converter", "llama.cpp's own converter, for rare architectures."),
    "registry": ("registry", "registry", "The registry that comes with modelpack."),
    "status": ("status", "status", "Show the store, the policy and the machine."),
    "doctor": ("doctor", "doctor", "Find out why a registry does not work."),
    "completion": ("status", "completion", "Print a shell completion script."),
    "version": ("status", "version", "Show versions."),
}

# What people type who come from Docker, Ollama or the hub.
ALIASES = {"ls": "list", "images": "list", "chat": "run", "show": "inspect", "rmi": "rm", "create": "build"}


# A refusal fits on one screen.
_MAX_SHOWN = 8


class CommandGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(cmd_name, [*COMMANDS, *ALIASES], n=1)
            suggestion = f" Did you mean {near[0]!r}?" if near else " See modelpack --help."
            raise click.UsageError(f"There is no command {cmd_name!r}.{suggestion}", ctx)
        module, attribute, _ = COMMANDS[name]
        command = getattr(importlib.import_module(f"modelpack.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"modelpack.cli.{module}.{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text) for name, (_, _, text) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return commands or super().shell_complete(ctx, incomplete)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="modelpack %(version)s")
def cli() -> None:
    """From an approved checkpoint to a verified model on your GPU, with the evidence attached.

    \b
    modelpack build ./checkpoint -t registry.example.com/team/model:v1 --quant Q4_K_M
    modelpack push registry.example.com/team/model:v1 --sign team.key
    modelpack pull registry.example.com/team/model:v1
    modelpack run registry.example.com/team/model:v1 "Hello"
    """


def main() -> NoReturn:
    """Run the command line; ends the process with the exit code of failures.EXIT_CODES."""
    signal.signal(signal.SIGTERM, _terminate)
    # Most of what a command loads lives to its end: to look for garbage at every 700 objects takes longer than to load.
    gc.set_threshold(50_000)
    # numpy multiplies no matrices here; the threads that wait for some would keep a processor busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    json_output = "--json" in sys.argv
    code = 0
    try:
        # Without click's own handling, main returns what --help and ctx.exit() ask for.
        code = cli.main(standalone_mode=False) or 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("interrupted; what was transferred is kept", file=sys.stderr)
        code = failures.INTERRUPTED
    except click.ClickException as error:
        code = 2
        if json_output:
            _answer_error({"code": "usage", "exit": 2, "message": error.format_message(), "retryable": False})
        error.show(sys.stderr)
    except ModelpackError as error:
        code = _fail(failures.explain(error), json_output=json_output)
    except BrokenPipeError:
        # Whoever read our answer has seen enough (modelpack list | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        failure = failures.explain_os_error(error) if isinstance(error, OSError) else None
        if failure is None:
            import traceback

            traceback.print_exc()
            failure = failures.Failure(
                failures.BUG,
                "bug",
                f"{type(error).__name__}: {error}",
                f"this is a fault of modelpack {__version__}: please report it with the lines above",
            )
        code = _fail(failure, json_output=json_output)
    _leave(code)


def _fail(failure: failures.Failure, *, json_output: bool) -> int:
    if json_output:
        _answer_error(failure.to_json())
    _tell(f"error[{failure.code}]: {failure.message}")
    for where, reason in failure.rejections[:_MAX_SHOWN]:
        print(f"  {printable(where)}: {printable(reason)}", file=sys.stderr)
    if len(failure.rejections) > _MAX_SHOWN:
        print(f"  and {len(failure.rejections) - _MAX_SHOWN} more, which --json lists", file=sys.stderr)
    if failure.hint:
        print(f"  next: {failure.hint}", file=sys.stderr)
    return failure.exit


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    # As Ctrl-C: whatever cleans up on an interrupt cleans up when a scheduler stops us, too.
    raise KeyboardInterrupt


def _answer_error(error: dict[str, object]) -> None:
    print(json_text({"error": error}))


def _tell(message: str) -> None:
    message = printable(message)
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        message = click.style(message, fg="red")
    print(message, file=sys.stderr)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == failures.INTERRUPTED:
        # A transfer thread that waits for a slow registry must not hold up Ctrl-C.
        os._exit(code)
    sys.exit(code)
