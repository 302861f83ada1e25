"""modelpack converter install, status and remove."""

from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.cli.weights import upstream_environment

if TYPE_CHECKING:
    from modelpack.upstream import UpstreamEnvironment


@click.group("converter")
def converter() -> None:
    """llama.cpp's own converter, for architectures that modelpack does not convert by itself.

    It needs torch and transformers (1.2 GB), which live in an environment of their own. It runs as a child process
    without credentials and, where the system allows it, without network.
    """


@command("install")
def install(app: App) -> None:
    """Install it: pinned releases, each checked by its hash.

    pip does the work with this machine's own settings. On Linux, let it find the processor-only build of torch
    2.13.0 (for example with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS): the one for GPUs is not what is pinned.

    \b
    modelpack converter install
    modelpack build ./rare-model -t rare:v1 --quant Q4_K_M
    """
    environment = upstream_environment(app)
    environment.install(progress=app.progress)
    _answer(app, environment)


@command("status")
def status(app: App) -> None:
    """Show whether it is installed, where, and what it takes.

    \b
    modelpack converter status
    """
    _answer(app, upstream_environment(app))


@command("remove")
def remove(app: App) -> None:
    """Remove it and all that was installed for it.

    \b
    modelpack converter remove
    """
    environment = upstream_environment(app)
    environment.remove()
    _answer(app, environment)


converter.add_command(install)
converter.add_command(status)
converter.add_command(remove)


def _answer(app: App, environment: "UpstreamEnvironment") -> None:
    size = environment.size()
    document = {
        "directory": str(environment.directory),
        "installed": environment.is_installed,
        "release": environment.release,
        "bytes": size,
    }
    what = (
        f"llama-cpp-python {environment.release}, {human_size(size)}" if environment.is_installed else "not installed"
    )
    app.answer(document, f"{environment.directory}: {what}")
