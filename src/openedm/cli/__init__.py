"""The command line: one sub-command a file, with the same names as in Python and YAML."""
