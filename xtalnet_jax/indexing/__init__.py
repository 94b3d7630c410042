"""Indexing of powder patterns: positions of lines -> unit cells."""
