"""The commands of operators: upgrade, restore, copy, export, import and install."""
