"""The commands of operators: upgrade, restore, copy, export and install."""
