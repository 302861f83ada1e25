"""What a child process gives up before it touches anything from strangers: memory and time without end, the network."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def limit_resources(memory: int) -> None:
    """No core dumps, and at most ``memory`` bytes of data; what is mapped from files is not counted."""
    import resource

    # RLIMIT_AS would count mapped weights and the address space that GPU drivers reserve; DATA counts neither.
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, memory)):
        hard = resource.getrlimit(limit)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (lowest, lowest))


def limit_time(seconds: int) -> None:
    """SIGXCPU, which nothing here handles, ends this process when it has computed for so long, all threads together."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard)
        )


def leave_network() -> bool:
    """Move into an empty network namespace where the kernel lets us (Linux); False where it does not.

    Needs a process of one thread. Unix sockets stay reachable: they are paths, not addresses.
    """
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    user, group = os.geteuid(), os.getegid()
    if unshare(_CLONE_NEWNET) == 0:
        return True
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux); an exec keeps it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
