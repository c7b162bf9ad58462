"""How far engines are from full precision, at the states of a chain."""
