"""modelpack status, version and completion."""

import os
import platform
import sys
from importlib import metadata

import click

from modelpack import __version__
from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.errors import InvalidInputError

_SHOWN = ("llama_cpp_python", "gguf", "huggingface_hub", "oras", "cryptography")


def _versions() -> dict[str, str]:
    versions = {}
    for name in _SHOWN:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


@command("version")
def version(app: App) -> None:
    """Show the versions of modelpack and of what it stands on."""
    versions = _versions()
    document = {"modelpack": __version__, "python": platform.python_version(), "packages": versions}
    lines = [f"modelpack {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})"]
    lines += [f"{name} {number}" for name, number in versions.items()]
    app.answer(document, "\n".join(lines))


@command("status")
def status(app: App) -> None:
    """Show the store, the policy, the processors, and whether llama.cpp can use a GPU."""
    from modelpack.cli.places import policy_path
    from modelpack.engine.probe import probe

    usage = app.store.usage()
    policy = policy_path(app.settings)
    backend = probe()
    document = {
        "modelpack": __version__,
        "store": {"path": str(app.settings.store), "models": len(usage.models), "bytes": usage.size},
        "policy": str(policy) if policy else None,
        "processors": os.cpu_count() or 1,
        "llama_cpp": {"version": backend.version, "gpu": backend.gpu, "system": backend.system},
    }
    gpu = "yes" if backend.gpu else "no: llama-cpp-python is built for the CPU (see the README for GPU builds)"
    lines = [
        f"modelpack  {__version__}",
        f"store      {app.settings.store}: {len(usage.models)} models, {human_size(usage.size)}",
        f"policy     {policy or 'none: pull asks for --key'}",
        f"llama.cpp  llama-cpp-python {backend.version}, {os.cpu_count()} processors",
        f"           {backend.system}",
        f"gpu        {gpu}",
    ]
    app.answer(document, "\n".join(lines))


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(app: App, shell: str) -> None:
    """Print a completion script.

    \b
    bash: eval "$(modelpack completion bash)"
    zsh:  eval "$(modelpack completion zsh)"
    fish: modelpack completion fish | source
    """
    from click.shell_completion import get_completion_class

    from modelpack.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise InvalidInputError(f"no completion for {shell}")
    script = kind(cli, {}, "modelpack", "_MODELPACK_COMPLETE").source()
    app.answer({"shell": shell, "script": script}, script)
    if sys.stdout.isatty():
        app.note(f"this is a script: eval it, as modelpack completion --help says for {shell}")
