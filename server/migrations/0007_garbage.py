"""Files that attempts may have left on the storages, until they are removed."""

from typing import Any

from peewee import BigAutoField, BigIntegerField, DoubleField, Model, TextField

INDEX = (
    "CREATE INDEX replica_ends_with_number"
    " ON replica (substr(url, length(rtrim(url, '0123456789')) + 1, 20))"
    " WHERE storage_id IS NULL AND url <> rtrim(url, '0123456789')"
)
"""Who is about to remove a file asks whether a user has registered it. Hardly any address that users register ends with a number."""


def up(migrator: Any, db: Any) -> None:
    class Garbage(Model):
        id = BigAutoField()
        attempt_id = BigIntegerField(index=True)
        url = TextField()
        due = DoubleField(index=True)

        class Meta:
            database = db
            table_name = "garbage"

    db.create_tables([Garbage])
    db.execute_sql(INDEX)
