"""Ollama's TEMPLATEs: which of them writes a prompt as the model's own chat template does."""
