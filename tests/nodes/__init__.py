"""Several nodes, with a real proxy, pooler and standby."""
