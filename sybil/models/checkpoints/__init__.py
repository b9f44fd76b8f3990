"""What lies on a disk: configs, families of models, tensors by name."""
