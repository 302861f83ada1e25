"""Who may sign what. Decides; fetches nothing, and reads and writes no file but its own and the keys beside it."""

from modelpack.policy.editing import add_key_rule
from modelpack.policy.rules import Action, Policy, Rule, Status, TrustedKey

__all__ = ["Action", "Policy", "Rule", "Status", "TrustedKey", "add_key_rule"]
