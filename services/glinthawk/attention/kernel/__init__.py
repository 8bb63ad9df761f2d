"""The compiled attention kernel and its Python face."""
