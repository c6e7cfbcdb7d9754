"""Benchmarks of the server: they start what they need, measure subject and reference in one run, and end what they started."""
