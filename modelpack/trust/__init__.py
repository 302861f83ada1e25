"""Whether an artifact may be used: its signatures and attestations, held against the policy.

Reads a few KiB, never a large blob.
"""

from modelpack.trust.check import check_trust, require_not_revoked
from modelpack.trust.templates import require_templates
from modelpack.trust.verdict import Attested, Signer, Verdict

__all__ = ["Attested", "Signer", "Verdict", "check_trust", "require_not_revoked", "require_templates"]
