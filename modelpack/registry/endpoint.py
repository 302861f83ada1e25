"""One repository's part of the API, ``/v2/<name>/...``, and the scope that its requests ask for."""

from collections.abc import Collection, Mapping

from modelpack.oci.digest import Digest
from modelpack.registry.auth import Scope
from modelpack.registry.http import Body, Response
from modelpack.registry.session import Session

_PULL = frozenset({"pull"})
_PUSH = frozenset({"pull", "push"})
_DELETE = frozenset({"pull", "push", "delete"})


class Endpoint:
    """Requests about one repository. With ``push``, reading asks for the right to write too: one token for all."""

    def __init__(self, session: Session, name: str, *, push: bool = False) -> None:
        self.session = session
        self.name = name
        self.full_name = f"{session.registry}/{name}"
        self.profile = session.profile
        self.places: dict[Digest, str] = {}
        """Where the registry sent us for a blob: a signed URL at a content network, as long as it lives."""
        self.refuses_put = False
        """Whether a blob in one PUT was refused, so that the next ones need not try."""
        self.refuses_large = False
        """Whether a large body was refused for its size, so that blobs go in pieces."""
        self._actions = _PUSH if push else _PULL

    def request(
        self,
        method: str,
        place: str,
        *,
        what: str,
        expect: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
        follow_origins: bool = True,
        pull_from: str = "",
        load: int | None = None,
    ) -> Response:
        """``place`` is a path under the repository, an absolute path, or a URL that the registry named.

        ``pull_from`` is another repository that the request reads from; the rest is as ``Session.request`` has it.
        """
        if method == "DELETE":
            actions = _DELETE
        elif method in ("GET", "HEAD"):
            actions = self._actions
        else:
            actions = self._actions = _PUSH
        url = place if place.startswith("/") or "://" in place else f"/v2/{self.name}/{place}"
        return self.session.request(
            method,
            url,
            what=what,
            expect=expect,
            scope=Scope(self.name, actions, pull_from),
            headers=headers,
            body=body,
            retry=retry,
            follow_origins=follow_origins,
            load=load,
        )
