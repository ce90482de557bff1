"""GGUF files of llama.cpp: the container, the types of its tensors, and what its converter calls and orders them."""
