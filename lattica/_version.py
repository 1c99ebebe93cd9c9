"""The version of this release, as a literal: reading it from the installed metadata would cost every start 20 ms."""

__version__ = "0.1.0"
