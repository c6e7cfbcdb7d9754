"""Stand-ins for what cannot run, or cannot be made to misbehave, on a test machine."""
