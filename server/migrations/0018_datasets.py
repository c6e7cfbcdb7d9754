"""When a dataset was deleted, and what people say of datasets."""

from typing import Any

from peewee import CompositeKey, DoubleField, ForeignKeyField, Model, TextField


def up(migrator: Any, db: Any) -> None:
    db.execute_sql("""ALTER TABLE "dataset" ADD COLUMN "deleted" DOUBLE PRECISION""")

    class Dataset(Model):
        class Meta:
            database = db
            table_name = "dataset"

    class DatasetMetadata(Model):
        dataset = ForeignKeyField(Dataset, index=False)
        key = TextField()
        value = TextField()
        number = DoubleField(null=True)

        class Meta:
            database = db
            table_name = "dataset_metadata"
            primary_key = CompositeKey("dataset", "key")
            indexes = ((("key", "value"), False), (("key", "number"), False))

    db.create_tables([DatasetMetadata])
