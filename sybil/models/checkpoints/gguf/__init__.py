"""GGUF files: config, tokenizer and tensors as transformers has them, out of one file or of its parts."""
