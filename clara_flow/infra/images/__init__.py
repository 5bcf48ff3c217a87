"""Operator images: the catalog of bundled operators, which image means which of them, and how they are built."""
