"""Numbered changes of the schema, each applied once and in order; a file is never changed after a release."""
