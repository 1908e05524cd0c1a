"""What `make env` checks: whether this machine and its libraries can run what the config asks for."""
