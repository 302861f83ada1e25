"""nginx in front of a registry, as it stands before many: it ends TLS, buffers, and limits rates and bodies."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONFIG = """\
{user}daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
worker_processes 2;
events {{}}
http {{
  access_log {directory}/access.log combined;
  log_format connections '$connection $msec $request_time $request';
  access_log {directory}/connections.log connections;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen {address}{ssl};
    {certificate}
    client_max_body_size {largest_body};
    location / {{
      proxy_pass http://{registry};
      proxy_set_header Host $http_host;
      {settings}
    }}
  }}
}}
"""


def parallel_connections(directory: Path, path: str) -> tuple[int, int]:
    """Over how many connections requests for ``path`` came, and over how many at once, by nginx's own account."""
    connections, events = set(), []
    for line in (directory / "connections.log").read_text().splitlines():
        connection, ended, lasted, request = line.split(" ", 3)
        if request.startswith(f"GET {path} "):
            connections.add(connection)
            begun = float(ended) - float(lasted)
            # One that ends in the millisecond in which another begins was not beside it.
            events += [(round(begun, 3), 1), (round(float(ended) - 0.002, 3), -1)]
    going = most = 0
    for _, change in sorted(events):
        going += change
        most = max(most, going)
    return len(connections), most


@contextmanager
def running_nginx(
    directory: Path,
    registry: str,
    *,
    certificate: tuple[Path, Path] | None = None,
    largest_body: str = "0",
    settings: str = "proxy_set_header X-Forwarded-Proto $scheme;",
) -> Iterator[str]:
    """Its address, in front of ``registry``. ``certificate`` has the PEM files of certificate and key."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    directory.mkdir(parents=True, exist_ok=True)
    named = f"ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};" if certificate else ""
    config = directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            # As root, its workers become somebody who may not write where a test writes.
            user="user root;\n" if os.geteuid() == 0 else "",
            directory=directory,
            address=address,
            ssl=" ssl" if certificate else "",
            certificate=named,
            largest_body=largest_body,
            registry=registry,
            settings=settings,
        )
    )
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen([binary, "-c", str(config)], stdout=output, stderr=output)
    try:
        _wait(address, process, directory / "output")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait(address: str, process: subprocess.Popen[bytes], output: Path) -> None:
    host, _, port = address.partition(":")
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended: {output.read_text()}")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("nginx did not start")
