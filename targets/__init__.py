"""Formats, runtimes and devices: a model in, files and numbers out. Knows no recipe and no data set."""
