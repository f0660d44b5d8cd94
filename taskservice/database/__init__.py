"""The database: engines, tables, migrations, and the queue of writers."""
