"""Which READY jobs fit a pilot, and what that is decided by: shares, queues and nodes that fail, what tasks wait for; and why."""
