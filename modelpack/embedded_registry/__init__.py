"""The local store, served over the OCI distribution API 1.1 in plain HTTP, without users or passwords.

It serves one machine or a trusted LAN: the quick start, a share in a team, the far end of tests. Whoever reaches it may
read, and unless it is read-only, write. For more, put any real registry in its place.
"""

from modelpack.embedded_registry.app import create_app
from modelpack.embedded_registry.serve import serve

__all__ = ["create_app", "serve"]
