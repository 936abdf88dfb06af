"""Distances between samples: exact searches in bounded memory, none of which holds a matrix of all pairs."""
