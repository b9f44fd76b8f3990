"""GGUF files: gives their config, tokenizer and tensors as transformers has them, from one file or from all parts of
it."""
