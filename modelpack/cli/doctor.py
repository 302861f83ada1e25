"""modelpack doctor registry."""

import click

from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.oci.reference import Reference


@click.group("doctor")
def doctor() -> None:
    """Find out why something does not work."""


@command("registry")
@click.argument("place", metavar="HOST|REF")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def registry(app: App, place: str, plain_http: bool) -> None:
    """Show how a registry is reached, which rule gives it which credential, and what it supports.

    With a reference to an artifact, whether it lists referrers and sends parts of blobs is tried out. No secret is
    shown. Ends with 0 whatever it finds out.

    \b
    modelpack doctor registry ghcr.io
    modelpack doctor registry registry.example.com/team/model:v1
    """
    from modelpack.cli.places import connect_registry
    from modelpack.registry.credentials import Credentials
    from modelpack.registry.diagnosis import diagnose, impostor
    from modelpack.registry.network import NetworkSettings

    reference = Reference.parse(place) if "/" in place else None
    host = reference.registry if reference and reference.registry else place
    settings = app.settings
    found = Credentials.from_environment(settings.environment, authfile=settings.authfile).find(
        host, reference.repository if reference else ""
    )
    network = NetworkSettings.from_environment(settings.environment, ca_file=settings.ca_file)
    connected = connect_registry(app, host, plain_http=plain_http)
    result = diagnose(
        connected,
        connected.repository(reference.repository) if reference else None,
        reference.selector if reference else None,
    )
    if version := impostor():
        app.progress.warn(f"urllib3-future {version} has taken the place of urllib3: pip uninstall it, and niquests")
    profile = result.profile
    document = {
        "registry": host,
        "url": result.url,
        "encrypted": result.url.startswith("https:"),
        "authorities": [str(path) for path in network.certificates(host).authorities],
        "proxy": network.proxy_for(connected.session.origin) is not None,
        "credential": {"rule": found.rule, "username": found.credential.username} if found else None,
        "status": result.status,
        "api_version": result.api_version,
        "authentication": list(result.schemes),
        "problem": result.problem,
        "login": {"ok": result.login is None, "error": result.login},
        "referrers_api": result.referrers_api,
        "ranges": result.ranges,
        "profile": {
            "name": profile.name,
            "max_layer": profile.max_layer,
            "patch": profile.patch.value,
            "has_referrers_api": profile.has_referrers_api,
            "connections": profile.connections,
            "notes": list(profile.notes),
        },
    }
    limit = f"layers of at most {human_size(profile.max_layer)}" if profile.max_layer else "no known limits"
    untried = "not tried: give a reference to an artifact there"
    lines = [
        f"reached as      {result.url}" + ("" if document["encrypted"] else ", without TLS"),
        f"answer          {f'HTTP {result.status}' if result.status else result.problem}",
        f"authentication  {', '.join(result.schemes) or 'none is asked for'}",
        f"credential      {f'{found.credential.username}, from {found.rule}' if found else 'none: anonymous'}",
        f"login           {result.login or 'accepted'}",
        f"referrers API   {_said(result.referrers_api, 'yes', 'no: tags of digests serve instead', untried)}",
        f"parts of blobs  {_said(result.ranges, 'yes', 'no: blobs come in one stream', untried)}",
        f"known as        {profile.name}: {limit}, read over {profile.connections} connections",
        *(f"                {note}" for note in profile.notes),
    ]
    if result.problem and result.status:
        lines.append(f"problem         {result.problem}")
    app.answer(document, "\n".join(lines))


def _said(answer: bool | None, yes: str, no: str, unknown: str) -> str:
    return unknown if answer is None else yes if answer else no


doctor.add_command(registry)
