"""Structure solution in known cells: space groups, Wyckoff positions, annealing, evolution."""
