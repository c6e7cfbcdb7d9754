"""What server, pilot, copytools and clients must agree on; standard library only."""

__version__ = "0.1.0.dev0"
