"""One module a verb of the command line; each is also a function of the Python API. Nothing imports them but these two."""
