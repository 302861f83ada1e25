"""Debian's docker-registry (distribution 2.8), run for a test on a free loopback port."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}{storage}}}
http: {{addr: "{address}"{tls}}}
{auth}
"""


@contextmanager
def running_docker_registry(
    directory: Path,
    *,
    htpasswd: str | None = None,
    certificate: tuple[Path, Path] | None = None,
    read_only: bool = False,
) -> Iterator[str]:
    """Its address. ``htpasswd`` is a line for basic auth, ``certificate`` the PEM files of certificate and key."""
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    directory.mkdir(parents=True, exist_ok=True)
    auth = ""
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd + "\n")
        auth = f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}"
    tls = f", tls: {{certificate: {certificate[0]}, key: {certificate[1]}}}" if certificate else ""
    storage = ", maintenance: {readonly: {enabled: true}}" if read_only else ""
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(root=directory / "data", address=address, auth=auth, tls=tls, storage=storage))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([binary, "serve", str(config)], stdout=output, stderr=output)
    try:
        _wait(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.partition(":")
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"docker-registry ended: {log.read_text()}")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("docker-registry did not start")
