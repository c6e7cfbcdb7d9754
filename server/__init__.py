"""The dispatcher, its catalogue, its daemons; the only part with Flask and peewee."""
