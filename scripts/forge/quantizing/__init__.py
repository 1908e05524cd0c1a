"""Weights to quantized GGUF files without a 16-bit file in between, and such files checked tensor by tensor."""
