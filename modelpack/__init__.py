"""From an approved checkpoint to a verified model on your GPU, with the evidence attached."""

__version__ = "0.1.0"
