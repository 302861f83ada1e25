"""The faces of other libraries, on our engine."""
