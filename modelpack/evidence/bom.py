"""A bill of materials for a model: CycloneDX 1.6 with a model card (https://cyclonedx.org/docs/1.6/json/).

The same model gives the same bytes: time and serial number come from the artifact.
"""

import hashlib
import uuid
from typing import Any

from modelpack import __version__
from modelpack.formats import Model, ModelFile
from modelpack.oci.digest import Digest
from modelpack.signing.candidate import rfc3339

_HUB = "https://huggingface.co/"


def bill_of_materials(model: Model, digest: Digest) -> dict[str, Any]:
    """The BOM of the artifact ``digest`` that holds ``model``."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # One artifact has one BOM, whoever writes it and however often.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, str(digest))}",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(model.created),
            "tools": {"components": [{"type": "application", "name": "modelpack", "version": __version__}]},
            "component": _component(model, digest),
        },
        "components": [_file(file) for file in model.files],
        "dependencies": [{"ref": str(digest), "dependsOn": [str(file.digest) for file in model.files]}],
    }


def _component(model: Model, digest: Digest) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": str(digest),
        "name": model.name,
        "version": model.version or model.quantization or "unversioned",
        "description": model.description,
        "hashes": [{"alg": "SHA-256", "content": digest.hex}],
        "licenses": [_license(name) for name in model.licenses],
        "purl": _purl(model),
        "pedigree": {"ancestors": _ancestors(model)},
        "externalReferences": [{"type": "vcs", "url": model.source_url}] if model.source_url else [],
        "modelCard": {"modelParameters": _parameters(model)},
        "properties": _properties(model),
    }
    return {key: value for key, value in component.items() if value and value != {"ancestors": []}}


def _parameters(model: Model) -> dict[str, Any]:
    parameters = {
        "task": "feature-extraction" if model.embeds else "text-generation",
        "architectureFamily": model.architecture,
        "modelArchitecture": model.architecture,
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "embedding" if model.embeds else "text"}],
    }
    return {key: value for key, value in parameters.items() if value}


def _ancestors(model: Model) -> list[dict[str, Any]]:
    """What it was quantized from, and what that was made from."""
    ancestors: list[dict[str, Any]] = []
    if model.source_url and model.revision:
        name = model.source_url.removeprefix(_HUB)
        ancestor = {"type": "machine-learning-model", "name": name, "version": model.revision}
        ancestors.append({**ancestor, **({"purl": purl} if (purl := _purl(model)) else {})})
    ancestors += [{"type": "machine-learning-model", "name": name} for name in model.base_models]
    return ancestors


def _purl(model: Model) -> str | None:
    # https://github.com/package-url/purl-spec/blob/main/types-doc/huggingface-definition.md
    if model.source_url and model.revision and model.source_url.startswith(_HUB):
        return f"pkg:huggingface/{model.source_url.removeprefix(_HUB)}@{model.revision}"
    return None


def _license(name: str) -> dict[str, Any]:
    # A LicenseRef is in no list, so CycloneDX has it as a name.
    kind = "name" if name.startswith("LicenseRef-") else "id"
    return {"license": {kind: name.removeprefix("LicenseRef-")}}


def _properties(model: Model) -> list[dict[str, str]]:
    template = model.gguf.get("tokenizer.chat_template")
    properties = {
        "modelpack:quantization": model.quantization,
        "modelpack:parameters": str(model.parameters) if model.parameters else None,
        "modelpack:context-length": str(model.context_length) if model.context_length else None,
        # A template decides what the model is told, so a change of it is to be seen.
        "modelpack:chat-template-sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
    }
    return [{"name": name, "value": value} for name, value in properties.items() if value]


def _file(file: ModelFile) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": str(file.digest),
        "name": file.name,
        "hashes": [{"alg": "SHA-256", "content": file.digest.hex}],
        "properties": [{"name": "modelpack:size", "value": str(file.size)}],
    }
