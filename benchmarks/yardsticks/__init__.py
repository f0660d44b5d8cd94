"""The programs that the service is measured against; each could be written in an afternoon."""
