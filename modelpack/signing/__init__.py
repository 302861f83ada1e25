"""Signatures of artifacts: keys, the sigstore bundle, cosign's tag scheme. The only door to cryptography and nacl."""
