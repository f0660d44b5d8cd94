"""Marks that test files share."""

import pytest

# For tests without the database, or whose results cannot differ between databases.
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
