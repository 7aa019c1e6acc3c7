"""From image-caption pairs to concept archives."""
