"""llama.cpp: its runtime, converter, quantizer, compiled tools and importance matrix, and a GGUF file's metadata."""
