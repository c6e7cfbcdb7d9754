"""What a pilot told of the inputs that it keeps on its node."""

from typing import Any


def up(migrator: Any, db: Any) -> None:
    db.execute_sql('ALTER TABLE "pilot" ADD COLUMN "cache" TEXT')
