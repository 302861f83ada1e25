"""An OpenAI-compatible service over workers, for one machine."""
