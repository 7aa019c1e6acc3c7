"""How well a segmenter, or an archive, names what is in a picture."""
