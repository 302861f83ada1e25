"""What push and pull share on the command line: a rate, and the report of what went over the wire."""

import re
import time
from typing import TYPE_CHECKING

import click

from modelpack.cli.progress import human_size

if TYPE_CHECKING:
    from modelpack.registry.traffic import Traffic
    from modelpack.transfer import CopyResult

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmg])(?:i?b)?(?:/s)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SLOWEST = 1 << 10


def _parse_rate(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001
    """Bytes a second, as curl's --limit-rate reads them: 500K, 10M, 1.5G."""
    if value is None:
        return None
    match = _RATE.fullmatch(value.strip())
    rate = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if rate < _SLOWEST:
        raise click.BadParameter(f"{value!r} is no rate of at least 1K: write 500K, 10M or 1G, in bytes a second")
    return rate


limit_rate_option = click.option(
    "--limit-rate", callback=_parse_rate, metavar="RATE", help="Bytes a second over all connections: 500K, 10M."
)
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 32),
    help="Connections that carry content.  [default: 4; 8 from registries that are known to slow each one down]",
)


class Stopwatch:
    """How long a transfer takes, and what it took on the wire."""

    def __init__(self, traffic: "Traffic") -> None:
        self._traffic = traffic
        self._begun = time.monotonic()

    def report(self, result: "CopyResult") -> dict[str, int | float]:
        """The ``transfer`` part of the answers: bytes of all bodies, every try and all metadata included."""
        return {
            "bytes_sent": self._traffic.bytes_sent,
            "bytes_received": self._traffic.bytes_received,
            "bytes_resumed": result.bytes_resumed,
            "bytes_mounted": result.bytes_mounted,
            "retries": self._traffic.retries,
            "seconds": round(time.monotonic() - self._begun, 3),
        }

    def sentence(self, verb: str, result: "CopyResult") -> str:
        """What a person may want to know of it."""
        text = f"{verb} {human_size(result.bytes_copied)}; {result.blobs_skipped} blobs were there already"
        if result.bytes_resumed:
            text += f", {human_size(result.bytes_resumed)} of the others too"
        if result.bytes_mounted:
            text += f"; {human_size(result.bytes_mounted)} mounted from another repository"
        if self._traffic.retries:
            text += f"; tried again {self._traffic.retries} times"
        return text
