"""How good is it: matching, retrieval, generation, agreement of patterns, calibration, tables."""
