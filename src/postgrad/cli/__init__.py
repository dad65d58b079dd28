"""The command line: it parses words and calls one function of `postgrad.commands`; help imports no torch."""

from postgrad.cli.main import main

__all__ = ["main"]
