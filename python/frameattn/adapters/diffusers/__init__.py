"""Adapters of diffusers' video transformers, a file for each family. None imports diffusers before it is called."""
