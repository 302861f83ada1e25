"""modelpack policy: check, explain, init."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.places import editable_policy, load_policy
from modelpack.oci.reference import Reference

if TYPE_CHECKING:
    from modelpack.policy import Policy, Requirement, Rule, TrustedSigner


@click.group("policy")
def policy() -> None:
    """Look at the policy: who may sign what."""


@command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def check(app: App, file: Path | None) -> None:
    """Read a policy as strictly as pull does, and show its rules; without FILE the one that counts here.

    Ends with 2 for a file that cannot mean anything, or that asks for what this version would not enforce.
    """
    from modelpack.policy import Policy

    found = Policy.load(file) if file else load_policy(app)
    if found is None:
        app.answer(_policy_document(Policy.empty()), "")
        app.note("there is no policy: pull asks for --key, and modelpack policy init makes one")
        return
    blocks = ["\n".join([rule.match, *(f"  {line}" for line in _needs(rule))]) for rule in found.rules]
    blocks += [f"revoked {digest}{f': {reason}' if reason else ''}" for digest, reason in found.revoked.items()]
    blocks.append(
        f"{found.path}: {len(found.rules)} rules{', locked' if found.is_locked else ''}; else {found.default}"
    )
    app.answer(_policy_document(found), "\n".join(blocks))


@command("explain")
@click.argument("reference", metavar="REF")
def explain(app: App, reference: str) -> None:
    """Say which rule decides about a reference, whose signatures count, and what is needed. Asks no registry.

    \b
    modelpack policy explain registry.example.com/team/model:v1
    """
    from modelpack.policy import Policy

    wanted = Reference.parse(reference)
    found = load_policy(app) or Policy.empty()
    rule = found.rule_for(wanted)
    others = [one.match for one in found.rules if one is not rule and one.matches(wanted)]
    document = {
        "reference": str(wanted),
        "policy": str(found.path) if found.path else None,
        "locked": found.is_locked,
        "default": found.default,
        "rule": _rule_document(rule) if rule else None,
        "signed_as": rule.signed_as(wanted) if rule else None,
        "less_specific": others,
    }
    lines = [f"reference  {wanted}", f"policy     {found.path or 'none'}{' (locked)' if found.is_locked else ''}"]
    if rule is None:
        lines += [f"rule       none is about {wanted.name}; default: {found.default}"]
        if not found.is_locked:
            lines += [f"next       modelpack trust add NAME KEY.pub --match '{wanted.name}'"]
    else:
        lines += [f"rule       {rule.match}", *(f"needs      {line}" for line in _needs(rule, wanted))]
        lines += [f"not        {match}, which is less specific" for match in others]
    app.answer(document, "\n".join(lines))


@command("init")
def init(app: App) -> None:
    """Write a policy that refuses everything, with comments that show how to say more. Never overwrites one."""
    from modelpack.policy import write_starting_policy

    path = editable_policy(app.settings)
    write_starting_policy(path)
    app.answer({"policy": str(path)}, str(path))


def _needs(rule: "Rule", wanted: Reference | None = None) -> list[str]:
    """What a rule asks for, a line each."""
    lines = [f"{rule.threshold} of {len(rule.signers)} signatures, as {' or '.join(rule.formats)}, by:"]
    lines += [f"  {_signer(one)}" for one in rule.signers]
    if rule.require_ref:
        name = rule.signed_as(wanted) if wanted else rule.signed_prefix or "the name that is asked for"
        lines.append(f"signed for the very tag, as {name}{f':{wanted.tag}' if wanted and wanted.tag else ''}")
    if rule.max_age:
        lines.append(f"signed no longer than {rule.max_age.days} days {rule.max_age.seconds // 3600} hours ago")
    if rule.licenses is not None:
        lines.append(f"a licence among {', '.join(rule.licenses)}")
    if rule.templates is not None:
        lines.append(f"a chat template among sha256 {', '.join(rule.templates)}")
    for one in rule.attestations:
        names = ", ".join(signer.name for signer in one.signers)
        lines.append(f"{one.threshold} attestation of the type {one.type} by {names}")
        lines += [f"  whose {path} is {' or '.join(map(repr, values))}" for path, values in one.where.items()]
    return lines


def _signer(signer: "TrustedSigner") -> str:
    from modelpack.policy import TrustedKey
    from modelpack.signing.candidate import rfc3339

    text = f"{signer.name} {signer.id}"
    if signer.status != "active":
        text += f", {signer.status}"
    if isinstance(signer, TrustedKey) and signer.not_after:
        text += f", until {rfc3339(signer.not_after)}"
    return text


def _policy_document(found: "Policy") -> dict[str, object]:
    return {
        "policy": str(found.path) if found.path else None,
        "digest": str(found.digest),
        "locked": found.is_locked,
        "default": found.default,
        "rules": [_rule_document(rule) for rule in found.rules],
        "revoked": [{"digest": str(digest), "reason": reason} for digest, reason in found.revoked.items()],
    }


def _rule_document(rule: "Rule") -> dict[str, object]:
    return {
        "match": rule.match,
        "threshold": rule.threshold,
        "signers": [_signer_document(signer) for signer in rule.signers],
        "formats": list(rule.formats),
        "require_ref": rule.require_ref,
        "max_age_seconds": int(rule.max_age.total_seconds()) if rule.max_age else None,
        "signed_prefix": rule.signed_prefix,
        "licenses": list(rule.licenses) if rule.licenses is not None else None,
        "template_sha256": list(rule.templates) if rule.templates is not None else None,
        "attestations": [_requirement_document(one) for one in rule.attestations],
    }


def _requirement_document(requirement: "Requirement") -> dict[str, object]:
    return {
        "type": requirement.type,
        "threshold": requirement.threshold,
        "signers": [signer.name for signer in requirement.signers],
        "where": {path: list(values) for path, values in requirement.where.items()},
    }


def _signer_document(signer: "TrustedSigner") -> dict[str, object]:
    from modelpack.policy import TrustedKey
    from modelpack.signing.candidate import rfc3339

    not_after = signer.not_after if isinstance(signer, TrustedKey) else None
    return {
        "name": signer.name,
        "kind": "key" if isinstance(signer, TrustedKey) else "identity",
        "id": signer.id,
        "status": signer.status,
        "not_after": rfc3339(not_after) if not_after else None,
    }


policy.add_command(check)
policy.add_command(explain)
policy.add_command(init)
