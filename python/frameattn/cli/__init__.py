"""The command line: each command of ``frameattn`` is a module here."""
