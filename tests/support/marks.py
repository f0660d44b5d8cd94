"""Marks that test files share."""

import pytest

# For what asks the database nothing, or what cannot differ between databases.
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
