"""The database: engines, tables, migrations, and how writers take turns."""
