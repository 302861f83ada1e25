"""The local store, served over the OCI distribution API 1.1.

It serves one machine or a LAN: the quick start, a share in a team, the far end of tests. Plain HTTP for everybody who
reaches it, unless it is given a certificate and an account; read-only if asked. For more, put any real registry in its
place.
"""

from modelpack.embedded_registry.access import Account
from modelpack.embedded_registry.app import create_app
from modelpack.embedded_registry.serve import serve

__all__ = ["Account", "create_app", "serve"]
