"""How places are spelled: registry references, the hub, OCI layouts, files.

The grammar of names, tags and digests is that of the OCI distribution specification 1.1, "Pulling manifests";
which first component is a registry is Docker's rule. Matching is anchored: ``a:b:c`` is an error, never a guess.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from modelpack.errors import InvalidContentError, MalformedReferenceError
from modelpack.oci.digest import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_HUB_REPOSITORY = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,254}", re.ASCII)

DEFAULT_TAG = "latest"

_IMPLIED_PORTS = (":443", ":80")
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Reference:
    """An artifact: ``[oci://]registry[:port]/repository[:tag][@sha256:...]``.

    Without a registry it is a short name, which means the local store and never a registry that nobody typed.
    """

    registry: str | None
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Raises MalformedReferenceError, which says what is wrong with the text."""
        rest = text.removeprefix("oci://")
        if not rest or "://" in rest:
            raise MalformedReferenceError(f"not a reference: {text!r}")
        digest = None
        if "@" in rest:
            rest, _, digest_text = rest.partition("@")
            try:
                digest = Digest(digest_text)
            except InvalidContentError as error:
                raise MalformedReferenceError(f"reference {text!r}: {error}") from error
        first, slash, remainder = rest.partition("/")
        registry = None
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, rest = first, remainder
            if not _REGISTRY.fullmatch(registry):
                raise MalformedReferenceError(f"reference {text!r}: {registry!r} is not a registry")
        repository, colon, tag = rest.partition(":")
        if not _REPOSITORY.fullmatch(repository):
            lower = " (names are lower case)" if _REPOSITORY.fullmatch(repository.lower()) else ""
            raise MalformedReferenceError(f"reference {text!r}: {repository!r} is not a repository name{lower}")
        if colon and not _TAG.fullmatch(tag):
            raise MalformedReferenceError(f"reference {text!r}: {tag!r} is not a tag")
        if len(registry or "") + len(repository) > 255:
            raise MalformedReferenceError(f"reference {text[:60]!r}...: longer than 255 characters")
        return cls(registry, repository, tag or None, digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest: where signatures and policies speak of."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def plain_name(self) -> str:
        """``name`` in the one spelling of all that mean it: lower case, Docker Hub as ``docker.io``, no implied port.

        What is decided by name must not depend on how somebody typed it.
        """
        if not self.registry:
            return self.repository
        host = self.registry.lower()
        for port in _IMPLIED_PORTS:
            host = host.removesuffix(port)
        return f"{_DOCKER_HUB if host in _DOCKER_HUB_ALIASES else host}/{self.repository}"

    @property
    def selector(self) -> str:
        """What to resolve: the digest if there is one (it always wins), else the tag, else ``latest``."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    @property
    def tagged(self) -> str:
        """``name:tag``, the form that signatures are bound to."""
        return f"{self.name}:{self.tag or DEFAULT_TAG}"

    @property
    def plain_tagged(self) -> str:
        """``tagged`` in the one spelling of all that mean it."""
        return f"{self.plain_name}:{self.tag or DEFAULT_TAG}"

    def pinned(self, digest: Digest) -> str:
        """``name:tag@digest``, what was found; without a tag that nobody named where a digest was asked for."""
        return f"{self.name if self.digest and not self.tag else self.tagged}@{digest}"

    def with_tag(self, tag: str) -> "Reference":
        if not _TAG.fullmatch(tag):
            raise MalformedReferenceError(f"{tag!r} is not a tag")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> "Reference":
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the Hugging Face hub: ``hf://org/repo[@revision]``."""

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "HubReference":
        repository, at, revision = text.removeprefix("hf://").partition("@")
        if not text.startswith("hf://") or not _HUB_REPOSITORY.fullmatch(repository):
            raise MalformedReferenceError(f"not a hub repository: {text!r} (hf://org/repo[@revision])")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise MalformedReferenceError(f"not a revision: {revision!r}")
        return cls(repository, revision or "main")

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An artifact in an OCI image layout on disk: ``oci-layout:DIR[:tag]``."""

    path: Path
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> "LayoutReference":
        rest = text.removeprefix("oci-layout:")
        path, colon, tag = rest.rpartition(":")
        if colon and _TAG.fullmatch(tag):
            return cls(Path(path), tag)
        if not rest:
            raise MalformedReferenceError("oci-layout: names no directory")
        return cls(Path(rest))


@dataclass(frozen=True, slots=True)
class ArchiveReference:
    """An artifact in an OCI image layout in a tar file: ``oci-archive:FILE.tar[:tag]``."""

    path: Path
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ArchiveReference":
        layout = LayoutReference.parse("oci-layout:" + text.removeprefix("oci-archive:"))
        return cls(layout.path, layout.tag)


@dataclass(frozen=True, slots=True)
class FileReference:
    """One file on disk: ``file:PATH``."""

    path: Path


Location = Reference | HubReference | LayoutReference | FileReference


def parse_location(text: str) -> Location:
    """Any of the spellings above. Raises MalformedReferenceError."""
    if text.startswith("hf://"):
        return HubReference.parse(text)
    if text.startswith("oci-layout:"):
        return LayoutReference.parse(text)
    if text.startswith("file:"):
        return FileReference(Path(text.removeprefix("file:")))
    return Reference.parse(text)
