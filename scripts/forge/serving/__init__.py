"""The finished GGUF in use: talk to it, serve it, deploy it."""
