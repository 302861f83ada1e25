"""Lists: tags, referrers, repositories."""

from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.requests import Call, parse_digest
from modelpack.oci.manifest import IMAGE_INDEX
from modelpack.store import Store


async def tags(call: Call) -> Response:
    if call.upstream:
        found = await run_in_threadpool(call.upstream.tags, call.repository)
    elif await run_in_threadpool(call.repository.exists):
        found = await run_in_threadpool(call.repository.list_tags)
    else:
        raise RefusedError(404, "NAME_UNKNOWN", f"no repository {call.repository.name}")
    page, headers = _page(call.request, found)
    # The name as the client knows it: the store's may have this host in front.
    name = call.request.url.path.removeprefix("/v2/").removesuffix("/tags/list")
    return JSONResponse({"name": name, "tags": page}, headers=headers)


async def referrers(call: Call) -> Response:
    subject = parse_digest(call.item)
    if call.upstream:
        found = await run_in_threadpool(call.upstream.referrers, call.repository, subject)
    else:
        found = await run_in_threadpool(call.repository.list_referrers, subject)
    wanted = call.request.query_params.get("artifactType")
    headers = {"Content-Type": IMAGE_INDEX}
    if wanted:
        found = [descriptor for descriptor in found if descriptor.artifact_type == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    manifests = [descriptor.to_json() for descriptor in found]
    return JSONResponse({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests}, headers=headers)


async def catalog(request: Request, store: Store) -> Response:
    """Docker's list of repositories, which the OCI specification leaves out and people still ask for."""
    index = await run_in_threadpool(store.read_index)
    host = f"{request.headers.get('host', '')}/"
    names = {entry.reference.name.removeprefix(host) for entry in index.entries if entry.reference}
    page, headers = _page(request, sorted(names))
    return JSONResponse({"repositories": page}, headers=headers)


def _page(request: Request, items: list[str]) -> tuple[list[str], dict[str, str]]:
    """The part of a sorted list that ``n`` and ``last`` ask for, and the link to the next."""
    last, limit = request.query_params.get("last"), request.query_params.get("n")
    if last is not None:
        items = [item for item in items if item > last]
    if limit is None:
        return items, {}
    if not limit.isdecimal() or len(limit) > 9:
        raise RefusedError(400, "UNSUPPORTED", "n is not a number")
    page = items[: int(limit)]
    if not page or len(page) == len(items):
        return page, {}
    link = f"{request.url.path}?{urlencode({'n': limit, 'last': page[-1]})}"
    return page, {"Link": f'<{link}>; rel="next"'}
