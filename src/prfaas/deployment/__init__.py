"""The deployment file: its schema, units and loader."""
