"""Readers of powder patterns, one module per family of formats; `io` chooses among them."""
