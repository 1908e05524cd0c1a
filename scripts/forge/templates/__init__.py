"""Ollama's TEMPLATEs, and which of them writes a prompt as the model's own chat template does."""
