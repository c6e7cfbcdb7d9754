"""Tests only; what an operator needs is a verb of `pilotage`."""
