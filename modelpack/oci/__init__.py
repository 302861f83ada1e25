"""The values and protocols of the OCI image and distribution specifications 1.1. No I/O, no third-party import."""
