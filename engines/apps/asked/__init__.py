"""The samples that a user asks for, on a command line, from Python or over HTTP."""
