"""The life of data in the database: archive, backup, copy, clean-up, reconciliation."""
