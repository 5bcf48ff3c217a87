"""The pipeline language: text with positions in, checked tree or problems out."""
