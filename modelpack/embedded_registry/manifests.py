"""Manifests, by tag and by digest."""

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.requests import Call, parse_digest, read_bounded
from modelpack.errors import InvalidContentError, MalformedReferenceError, NotFoundError
from modelpack.oci.manifest import MAX_MANIFEST_SIZE, Manifest
from modelpack.oci.reference import Reference

_MAX_TAGS = 16


async def get(call: Call) -> Response:
    def find() -> Manifest:
        if call.upstream:
            # It goes into the address of another request.
            _ = parse_digest(call.item) if ":" in call.item else Reference(None, "any").with_tag(call.item)
            return call.upstream.manifest(call.repository, call.item)
        return call.repository.fetch_manifest(call.repository.resolve(call.item))

    try:
        manifest = await run_in_threadpool(find)
    except (NotFoundError, InvalidContentError, MalformedReferenceError) as error:
        raise RefusedError(404, "MANIFEST_UNKNOWN", str(error)) from error
    headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": str(manifest.digest)}
    return Response(manifest.raw, headers=headers)


async def put(call: Call) -> Response:
    raw = await read_bounded(call.request, MAX_MANIFEST_SIZE)
    content_type = call.request.headers.get("content-type", "").partition(";")[0].strip()
    try:
        manifest = Manifest.parse(raw, media_type=content_type or None)
    except InvalidContentError as error:
        raise RefusedError(400, "MANIFEST_INVALID", str(error)) from error
    if ":" in call.item:
        if parse_digest(call.item) != manifest.digest:
            raise RefusedError(400, "DIGEST_INVALID", f"the manifest has the digest {manifest.digest}")
        tags = call.request.query_params.getlist("tag")[:_MAX_TAGS]
    else:
        tags = [call.item]
    missing = await run_in_threadpool(call.repository.missing, manifest)
    if missing:
        raise RefusedError(400, "MANIFEST_BLOB_UNKNOWN", f"no blob {missing[0].digest}: push it first")

    def store_it() -> None:
        call.repository.put_manifest(manifest)
        for tag in tags:
            call.repository.put_manifest(manifest, tag=tag)

    try:
        await run_in_threadpool(store_it)
    except MalformedReferenceError as error:
        raise RefusedError(400, "MANIFEST_INVALID", str(error)) from error
    prefix = call.request.url.path.rpartition("/manifests/")[0]
    headers = {"Docker-Content-Digest": str(manifest.digest), "Location": f"{prefix}/manifests/{manifest.digest}"}
    if manifest.subject:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    if tags and ":" in call.item:
        headers["OCI-Tag"] = ", ".join(tags)
    return Response(status_code=201, headers=headers)


async def delete(call: Call) -> Response:
    try:
        if ":" in call.item:
            await run_in_threadpool(call.repository.delete_manifest, parse_digest(call.item))
        else:
            await run_in_threadpool(call.repository.delete_tag, call.item)
    except (NotFoundError, MalformedReferenceError) as error:
        raise RefusedError(404, "MANIFEST_UNKNOWN", str(error)) from error
    return Response(status_code=202)
