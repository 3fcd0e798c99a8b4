"""One module a verb of the command line, each also a function of the Python API; nothing else imports them."""
