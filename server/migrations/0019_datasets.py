"""When a dataset was deleted, what people say of datasets, and containers of datasets as inputs of tasks."""

from typing import Any

from peewee import (
    BigAutoField,
    CompositeKey,
    DoubleField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)


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

    class Container(Model):
        number = BigAutoField()
        name = TextField(unique=True)
        owner = TextField(default="")
        created = DoubleField()

        class Meta:
            database = db
            table_name = "container"

    class ContainerMember(Model):
        number = BigAutoField()
        container = ForeignKeyField(Container, index=False)
        dataset = ForeignKeyField(Dataset)

        class Meta:
            database = db
            table_name = "container_member"
            indexes = ((("container", "dataset"), True),)

    class Task(Model):
        class Meta:
            database = db
            table_name = "task"

    class TaskInput(Model):
        task = ForeignKeyField(Task, index=False)
        position = IntegerField()
        dataset = ForeignKeyField(Dataset)

        class Meta:
            database = db
            table_name = "task_input"
            primary_key = CompositeKey("task", "position")

    db.create_tables([DatasetMetadata, Container, ContainerMember, TaskInput])
    db.execute_sql("""ALTER TABLE "task" ADD COLUMN "input_container" TEXT""")
