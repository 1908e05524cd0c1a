"""Everything of llama.cpp: its runtime, converter, quantizer and tools, and what a GGUF file says of itself."""
