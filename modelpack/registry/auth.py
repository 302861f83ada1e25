"""Who we are to a registry: Basic, bearer tokens (distribution's token specification) and OAuth2 refresh tokens.

A secret goes to the registry's own origin, or to a token server that the registry may rightly name; see
``_may_receive_secrets``. Tokens are kept in memory, for as long as they live.
"""

import base64
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from modelpack.errors import ForeignRealmError, InvalidContentError, RegistryRefusedError
from modelpack.oci import strict_json
from modelpack.registry.address import Origin, without_query
from modelpack.registry.challenges import Challenge
from modelpack.registry.credentials import Credential, CredentialSource
from modelpack.registry.http import Response, Transport
from modelpack.registry.refusal import Refusal
from modelpack.registry.retry import Retries

_DEFAULT_LIFETIME = 60.0  # token specification: when expires_in is missing
_MAX_ANSWER = 1 << 18
_MAX_TOKEN = 1 << 16
_CLIENT_ID = "modelpack"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request needs: actions (``pull``, ``push``, ``delete``) on one repository; a mount also reads another."""

    repository: str
    actions: frozenset[str]
    pull_from: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """As the token specification spells them."""
        own = f"repository:{self.repository}:{','.join(sorted(self.actions))}"
        return (own, f"repository:{self.pull_from}:pull") if self.pull_from else (own,)


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    fresh_until: float
    lasts_until: float  # for a request that takes long: half of its life is left


class Authorizer:
    """The Authorization header of requests to one registry's origin. Safe to use from several threads."""

    def __init__(
        self,
        registry: str,
        origin: Origin,
        credentials: CredentialSource,
        transport: Transport,
        retries: Retries,
        *,
        trusted_realms: frozenset[str] = frozenset(),
    ) -> None:
        self.registry = registry
        self.origin = origin
        self._credentials = credentials
        self._transport = transport
        self._retries = retries
        self._trusted_realms = trusted_realms
        # One lock round everything, the token server's answer included: many blobs at once ask for one token.
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._scopes: dict[Scope | None, tuple[str, ...]] = {}
        self.used_credential = False

    def header(self, scope: Scope | None, *, lasting: bool = False) -> str | None:
        """What is known to be needed; None before the registry has asked for anything.

        ``lasting`` is for a large body: a registry may look at its token again when the last byte has come.
        """
        with self._lock:
            if self._challenge is None:
                return None
            return self._header(self._challenge, scope, lasting=lasting)

    def answer(self, challenges: Sequence[Challenge], scope: Scope | None, *, rejected: str | None) -> str | None:
        """Another header than ``rejected`` that answers the challenges; None when there is nothing better."""
        with self._lock:
            challenge = next((one for one in challenges if one.scheme == "bearer" and "realm" in one.parameters), None)
            challenge = challenge or next((one for one in challenges if one.scheme == "basic"), None)
            if challenge is None:
                return None
            self._challenge = challenge
            if challenge.scheme == "bearer":
                self._learn_scopes(challenge, scope)
                current = self._tokens.get(self._scopes_of(scope))
                if current is not None and current.header == rejected:
                    del self._tokens[self._scopes_of(scope)]
            header = self._header(challenge, scope)
            return header if header != rejected else None

    def _header(self, challenge: Challenge, scope: Scope | None, *, lasting: bool = False) -> str | None:
        if challenge.scheme == "basic":
            credential = self._credential(scope)
            return _basic(credential) if credential and credential.password else None
        scopes = self._scopes_of(scope)
        token = self._tokens.get(scopes)
        if token is None or time.monotonic() >= (token.lasts_until if lasting else token.fresh_until):
            token = self._tokens[scopes] = self._retries.run(lambda: self._fetch(challenge, scope, scopes))
        return token.header

    def _scopes_of(self, scope: Scope | None) -> tuple[str, ...]:
        return self._scopes.get(scope) or (scope.texts if scope else ())

    def _learn_scopes(self, challenge: Challenge, scope: Scope | None) -> None:
        """Ask for what the registry asks for as well: some name repositories otherwise than their URLs do."""
        asked = [text for text in challenge.parameters.get("scope", "").split(" ") if text][:16]
        if not asked:
            return
        ours = self._scopes_of(scope)
        covered = {(text.rpartition(":")[0], action) for text in ours for action in text.rpartition(":")[2].split(",")}
        missing = [
            text
            for text in asked
            if any((text.rpartition(":")[0], action) not in covered for action in text.rpartition(":")[2].split(","))
        ]
        if missing:
            self._scopes[scope] = tuple(dict.fromkeys((*ours, *missing)))

    def _credential(self, scope: Scope | None) -> Credential | None:
        credential = self._credentials.lookup(self.registry, scope.repository if scope else "")
        self.used_credential = self.used_credential or credential is not None
        return credential

    def _fetch(self, challenge: Challenge, scope: Scope | None, scopes: tuple[str, ...]) -> _Token:
        realm = challenge.parameters["realm"]
        try:
            server = Origin.of(realm)
        except InvalidContentError as error:
            raise RegistryRefusedError(f"{self.registry} names a token server that is {error}") from error
        if self.origin.is_encrypted and not server.is_encrypted:
            raise RegistryRefusedError(f"{self.registry} names a token server without TLS: {without_query(realm)}")
        credential = self._credential(scope)
        if credential and not self._may_receive_secrets(server):
            raise ForeignRealmError(
                f"{self.registry} asks to send its credentials to {server}, which is another site: not sent"
            )
        with self._ask(realm, challenge.parameters.get("service"), scopes, credential) as response:
            if response.status != 200:
                refusal = Refusal.parse(response.status, response.headers, response.excerpt())
                raise refusal.error(f"a token for {self.registry}" + (f" ({scope.repository})" if scope else ""))
            return _parse_token(response.read(_MAX_ANSWER), server)

    def _ask(self, realm: str, service: str | None, scopes: tuple[str, ...], credential: Credential | None) -> Response:
        # No redirect is followed here, whatever the answer.
        if credential and credential.identity_token:
            # https://distribution.github.io/distribution/spec/auth/oauth/
            form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": _CLIENT_ID}
            form |= {"service": service} if service else {}
            form |= {"scope": " ".join(scopes)} if scopes else {}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._transport.send("POST", realm, headers=headers, body=urlencode(form).encode())
        parts = urlsplit(realm)
        query = [*parse_qsl(parts.query), *((("service", service),) if service else ())]
        query += [("scope", text) for text in scopes]
        if credential:
            query.append(("account", credential.username))
        headers = {"Authorization": _basic(credential)} if credential else {}
        url = parts._replace(query=urlencode(query), fragment="").geturl()
        return self._transport.send("GET", url, headers=headers)

    def _may_receive_secrets(self, server: Origin) -> bool:
        # A registry that names a stranger as its token server would make us hand him the password
        # (oras-go GHSA-28r5 and others). gitlab.com serves registry.gitlab.com, auth.docker.io serves docker.io:
        # so a token server of the same site, under its own certificate, is the registry's own business.
        if server == self.origin or server.host in self._trusted_realms:
            return True
        return server.is_encrypted and (server.host == self.origin.host or _same_site(server.host, self.origin.host))


def _same_site(one: str, other: str) -> bool:
    """One is a parent of the other, or both have the same parent of two labels or more."""
    if one.replace(".", "").isdigit() or other.replace(".", "").isdigit() or ":" in one or ":" in other:
        return False
    parents = {host.partition(".")[2] for host in (one, other)}
    return any(
        "." in site and all(host == site or host.endswith(f".{site}") for host in (one, other))
        for site in (one, other, *parents)
    )


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def _parse_token(body: bytes, server: Origin) -> _Token:
    document = strict_json.parse_object(body, what=f"the answer of the token server {server}")
    token = document.get("token") or document.get("access_token")
    # Anything else could smuggle a header line; bearer tokens are of RFC 6750's alphabet, all of it printable ASCII.
    if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN or not token.isascii() or " " in token:
        raise InvalidContentError(f"the token server {server} answers without a token")
    if not token.isprintable():
        raise InvalidContentError(f"the token server {server} answers with a token that is none")
    lifetime = document.get("expires_in")
    seconds = float(lifetime) if isinstance(lifetime, int) and 0 < lifetime < 10**9 else _DEFAULT_LIFETIME
    now = time.monotonic()
    return _Token(f"Bearer {token}", now + 0.8 * seconds, now + 0.5 * seconds)
