"""Requests to one registry: authorised at its origin and nowhere else, redirects by hand, retries with patience."""

import logging
from collections.abc import Collection, Mapping
from urllib.parse import urljoin

from modelpack.errors import PlainHTTPError, RegistryRefusedError
from modelpack.registry.address import Origin, stay_at, without_query
from modelpack.registry.auth import Authorizer, Scope
from modelpack.registry.challenges import parse_challenges
from modelpack.registry.http import Body, Response, Transport
from modelpack.registry.profiles import Profile
from modelpack.registry.refusal import Refusal, printable
from modelpack.registry.retry import Retries, TransientError

logger = logging.getLogger(__name__)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
# A body from here on takes long enough for a token to end under it.
_LARGE_BODY = 32 << 20


class Session:
    """One registry, as one user. Safe to use from several threads."""

    def __init__(
        self, registry: str, transport: Transport, authorizer: Authorizer, retries: Retries, profile: Profile
    ) -> None:
        self.registry = registry
        self.profile = profile
        self.origin = authorizer.origin
        self.retries = retries
        self.traffic = transport.traffic
        self._transport = transport
        self._authorizer = authorizer
        self._warnings: set[str] = set()
        # Whether it is known that a registry at an http origin does speak plain HTTP.
        self._is_plain_http = False

    def request(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: Collection[int],
        scope: Scope | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
        follow_origins: bool = True,
        load: int | None = None,
    ) -> Response:
        """Send a request, as often as ``retries`` allows, until the answer has a status in ``expect``.

        ``url`` is a path at the registry, or a URL that it named: no secret goes to another origin. ``what`` names the
        thing asked for, in messages. Without ``retry`` the first TransientError is raised. Without ``follow_origins`` a
        redirect to another origin is an answer like any other. ``load`` is the limit of a small body, which is then
        received with the answer: a connection that breaks inside it is tried again too. Raises AccessDeniedError,
        NotFoundError, RegistryRefusedError, RegistryUnavailableError.
        """

        def attempt() -> Response:
            try:
                response = self._exchange(method, url, scope, headers or {}, body, follow_origins=follow_origins)
            except TransientError:
                self._doubt_plain_http()
                raise
            if response.status in expect:
                self._is_plain_http = True
                self._heed_warnings(response)
                if load is not None:
                    response.load(load)
                return response
            with response:
                refusal = Refusal.parse(response.status, response.headers, response.excerpt())
            if refusal.status == 400 and not refusal.codes:
                self._doubt_plain_http()
            raise refusal.error(what)

        return self.retries.run(attempt) if retry else attempt()

    def greet(self) -> Response:
        """What the registry tells anybody who asks for ``/v2/``, whatever the status."""
        return self._transport.send("GET", f"{self.origin}/v2/", headers={})

    def _exchange(
        self,
        method: str,
        url: str,
        scope: Scope | None,
        headers: Mapping[str, str],
        body: Body | None,
        *,
        follow_origins: bool,
    ) -> Response:
        url = f"{self.origin}{url}" if url.startswith("/") else url
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(method, url, scope, headers, body)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            there = stay_at(Origin.of(url), url, location)
            if there is None:
                if not follow_origins:
                    return response
                response.close()
                there = self._leave(method, url, location)
            response.close()
            url = there
        raise RegistryRefusedError(f"{self.registry} redirects more than {_MAX_REDIRECTS} times")

    def _leave(self, method: str, url: str, location: str) -> str:
        """The URL of a redirect to another origin, if content may be read there. Nothing is ever sent there."""
        there = urljoin(url, location)
        target = Origin.of(there)
        if method not in ("GET", "HEAD"):
            raise RegistryRefusedError(f"{self.registry} redirects an upload to {target}, which is another host")
        if Origin.of(url).is_encrypted and not target.is_encrypted:
            raise RegistryRefusedError(f"{self.registry} redirects from https to plain http: {without_query(there)}")
        return there

    def _send(
        self, method: str, url: str, scope: Scope | None, headers: Mapping[str, str], body: Body | None
    ) -> Response:
        if Origin.of(url) != self.origin:
            return self._transport.send(method, url, headers=headers, body=body)
        is_large = int(headers.get("Content-Length", 0)) >= _LARGE_BODY
        authorization = self._authorizer.header(scope, lasting=is_large)
        response = self._transport.send(method, url, headers=_with(headers, authorization), body=body)
        if response.status != 401:
            return response
        # A body of hundreds of gigabytes is never sent to a stale token twice: uploads begin with an empty POST.
        challenges = parse_challenges(response.header_lines("WWW-Authenticate"))
        answer = self._authorizer.answer(challenges, scope, rejected=authorization)
        if answer is None:
            return response
        response.close()
        return self._transport.send(method, url, headers=_with(headers, answer), body=body)

    def _doubt_plain_http(self) -> None:
        """Raises PlainHTTPError where a registry that plain HTTP gets no answer from speaks TLS."""
        if self.origin.is_encrypted or self._is_plain_http:
            return
        if self._transport.speaks_tls(self.origin):
            raise PlainHTTPError(f"{self.registry} speaks TLS, and was spoken to in plain HTTP")
        self._is_plain_http = True

    def _heed_warnings(self, response: Response) -> None:
        # Distribution specification 1.1, "Warnings": shown once, never acted upon.
        for line in response.header_lines("Warning"):
            if line.startswith("299 ") and line not in self._warnings and len(self._warnings) < 20:
                self._warnings.add(line)
                logger.warning("%s warns: %s", self.registry, printable(line.partition('"')[2].rpartition('"')[0]))


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers
