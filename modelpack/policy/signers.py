"""Who may sign, as a policy names them: public keys, and the identities of certificates (keyless)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from modelpack.errors import InvalidKeyError, MalformedPolicyError, NotFoundError
from modelpack.policy import glob
from modelpack.policy.table import Table
from modelpack.signing.candidate import rfc3339
from modelpack.signing.keys import MAX_KEY_SIZE, PublicKey
from modelpack.small_file import read_small_file

Status = Literal["active", "retired", "revoked"]

MAX_SUBJECT = 1_000


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key with the name that the policy gives it. One that is not ``active`` counts less, or not at all."""

    name: str
    key: PublicKey
    status: Status = "active"
    not_after: datetime | None = None

    @classmethod
    def parse(cls, name: str, table: Table, directory: Path) -> "TrustedKey":
        """Read [keys.NAME] and the file that it names. Raises MalformedPolicyError."""
        path = directory / table.take("path", str)
        pin = table.optional("id", str)
        status = table.choice("status", get_args(Status), "active")
        not_after = table.time("not_after")
        table.done()
        try:
            key = PublicKey.load(read_small_file(path, limit=MAX_KEY_SIZE, error=MalformedPolicyError))
        except (InvalidKeyError, NotFoundError, MalformedPolicyError) as error:
            raise MalformedPolicyError(f"{table.where}: {path}: {error}") from error
        if pin is not None and pin != key.id:
            table.refuse(f"{path} holds the key {key.id}, not {pin!r:.80}")
        return cls(name, key, status, not_after)

    @property
    def id(self) -> str:
        return self.key.id

    @property
    def facts(self) -> dict[str, object]:
        return {
            "id": self.key.id,
            "status": self.status,
            "not_after": rfc3339(self.not_after) if self.not_after else None,
        }


@dataclass(frozen=True, slots=True)
class Identity:
    """Whoever the issuer says is ``subject``, a glob over the whole of a certificate's subject alternative name."""

    name: str
    issuer: str
    subject: str

    @classmethod
    def parse(cls, name: str, table: Table) -> "Identity":
        """Read [identities.NAME]. Raises MalformedPolicyError."""
        issuer, subject = table.take("issuer", str), table.take("subject", str)
        table.done()
        if not issuer.startswith("https://") or not issuer.isprintable() or " " in issuer or "*" in issuer:
            table.refuse(f"'issuer' is {issuer!r:.120}, not an https URL; it is compared exactly")
        if not subject.isprintable() or " " in subject or "***" in subject or len(subject) > MAX_SUBJECT:
            table.refuse(f"'subject' is {subject!r:.120}, not a glob over a URL or an e-mail address")
        if not subject.strip("*/.@:"):
            table.refuse("'subject' would let everybody sign to whom the issuer gives a token")
        return cls(name, issuer, subject)

    @property
    def id(self) -> str:
        return f"{self.subject} ({self.issuer})"

    @property
    def status(self) -> Status:
        return "active"

    @property
    def facts(self) -> dict[str, object]:
        return {"issuer": self.issuer, "subject": self.subject}

    def is_met_by(self, issuer: str, subject: str) -> bool:
        return issuer == self.issuer and glob.fits(self.subject, subject)


TrustedSigner = TrustedKey | Identity


def count_distinct(signers: Iterable[TrustedSigner]) -> int:
    """How many signatures these can give at most: one key under two names is one."""
    return len({signer.id for signer in signers})
