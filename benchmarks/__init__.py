"""Measurements of the project; each module is a command that writes into ``results/``."""
