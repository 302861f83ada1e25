"""Public packages that our work is held against, each in an environment of its own: they may want what we do not."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def peer_environment(config: pytest.Config, *requirements: str) -> Path:
    """The environment's bin folder; made once and kept in pytest's cache. Skips where pip cannot install them."""
    home = Path(config.cache.mkdir("peer-" + requirements[0].replace("==", "-")))
    ready = home / "ready"
    wanted = "\n".join(requirements)
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements]
        made = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        if made.returncode:
            pytest.skip(f"pip cannot install {requirements[0]}: {made.stderr.strip()[-200:]}")
        ready.write_text(wanted)
    return home / "bin"


def node_peer(config: pytest.Config, *packages: str) -> Path:
    """A folder with these npm packages; made once and kept in pytest's cache. Skips without node or without them."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    wanted = "\n".join(packages)
    home = Path(config.cache.mkdir("npm-" + hashlib.sha256(wanted.encode()).hexdigest()[:12]))
    ready = home / "ready"
    if not ready.exists():
        (home / "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", home, *packages]
        made = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        if made.returncode:
            pytest.skip(f"npm cannot install {packages[0]}: {made.stderr.strip()[-200:]}")
        ready.write_text(wanted)
    return home
