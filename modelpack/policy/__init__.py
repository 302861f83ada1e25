"""Who may sign what. Decides; fetches nothing, and reads and writes no file but its own and the keys beside it."""

from modelpack.policy.choice import choose_policy, locked_policy
from modelpack.policy.editing import add_key_rule, remove_signer, revoke_key, write_starting_policy
from modelpack.policy.policy import Action, Policy
from modelpack.policy.rules import Requirement, Rule
from modelpack.policy.signers import Identity, Status, TrustedKey, TrustedSigner

__all__ = [
    "Action",
    "Identity",
    "Policy",
    "Requirement",
    "Rule",
    "Status",
    "TrustedKey",
    "TrustedSigner",
    "add_key_rule",
    "choose_policy",
    "locked_policy",
    "remove_signer",
    "revoke_key",
    "write_starting_policy",
]
