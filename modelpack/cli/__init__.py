"""The command line: reads flags, environment and settings, names concrete classes, prints, and knows exit codes."""
