"""Benchmarks that need what only tests start: storage servers. The others are `pilotage bench`."""
