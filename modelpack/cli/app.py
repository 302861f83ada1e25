"""What every command gets: settings, the store, progress, and the way to answer."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from modelpack.cli.progress import make_progress
from modelpack.cli.settings import Settings, load_settings
from modelpack.cli.terminal import json_text, printable
from modelpack.errors import InvalidInputError
from modelpack.progress import Progress

if TYPE_CHECKING:
    from modelpack.store import Store

PROGRESS_MODES = ("auto", "plain", "json", "none")


class App:
    """One command's surroundings. Nothing heavy is imported until it is asked for."""

    def __init__(self, settings: Settings, *, json_output: bool, progress: Progress) -> None:
        self.settings = settings
        self.json_output = json_output
        self.progress = progress

    @cached_property
    def store(self) -> "Store":
        from modelpack.store import Store

        return Store.open(self.settings.store)

    def answer(self, document: Mapping[str, Any], text: str) -> None:
        """The one answer on stdout: ``document`` with --json (schemas/cli), else ``text``."""
        if self.json_output:
            click.echo(json_text(document))
        elif text:
            click.echo(printable(text))

    def table(self, document: Mapping[str, Any], header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        """An answer in columns; without rows the header alone still says what would be there."""
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        )
        self.answer(document, "\n".join(lines))

    def note(self, message: str) -> None:
        self.progress.note(message)

    def hint(self, message: str) -> None:
        """What to type next: for a person at a terminal, not for a log."""
        if sys.stderr.isatty() and not self.json_output:
            self.progress.note(message)


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A click command with the options that all commands share; the function gets an App first."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(json_output: bool, quiet: bool, verbose: bool, progress: str, store: str, **arguments: Any) -> None:
            settings = load_settings(store=store, progress=progress)
            if verbose:
                import logging

                # Ours alone: urllib3 and httpx log whole URLs, and storage behind a registry signs its URLs.
                logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
                logging.getLogger("modelpack").setLevel(logging.DEBUG)
            if settings.progress not in PROGRESS_MODES:
                raise InvalidInputError(
                    f"progress is {settings.progress!r:.40} in the settings, not one of {', '.join(PROGRESS_MODES)}"
                )
            app = App(settings, json_output=json_output, progress=make_progress(settings.progress, quiet=quiet))
            function(app, **arguments)

        made: click.Command = click.command(name)(functools.update_wrapper(run, function))
        made.params += [
            click.Option(["--json", "json_output"], is_flag=True, help="Answer with one JSON object."),
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress, only warnings and errors."),
            click.Option(["-v", "--verbose"], is_flag=True, help="Log what happens underneath."),
            click.Option(["--progress"], type=click.Choice(PROGRESS_MODES), help="How to show it.  [default: auto]"),
            click.Option(["--store"], type=click.Path(), help="The local store.  [env: MODELPACK_STORE]"),
        ]
        return made

    return decorate
