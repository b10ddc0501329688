"""Rows on disk: the schema, part files that survive a stop, and the table that is merged from them."""
