"""Licences as model cards spell them and as SPDX does (https://spdx.org/licenses/, version 3.27)."""

# The hub's identifiers are SPDX's in lower case, but for these.
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsl-1.0": "BSL-1.0",
    "isc": "ISC",
    "zlib": "Zlib",
    "unlicense": "Unlicense",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
    "epl-2.0": "EPL-2.0",
    "artistic-2.0": "Artistic-2.0",
    "cc0-1.0": "CC0-1.0",
    "cc-by-3.0": "CC-BY-3.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-2.0": "CC-BY-NC-2.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "wtfpl": "WTFPL",
    "postgresql": "PostgreSQL",
}


def spdx(identifier: str) -> str:
    """The SPDX expression for a card's ``license``; a LicenseRef where SPDX has no identifier (llama3.1, gemma)."""
    known = _SPDX.get(identifier.lower())
    if known:
        return known
    if identifier in _SPDX.values():
        return identifier
    # SPDX 2.3 annex D: idstrings consist of letters, digits, "." and "-".
    return "LicenseRef-" + "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in identifier)
