"""Backends: one class per runtime, all used through `engines.backends.base.Engine`."""
