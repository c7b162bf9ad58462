"""Backends: one class a runtime, all behind `engines.backends.base.Engine`."""
