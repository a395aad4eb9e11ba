"""Files that appear whole, pixels, PNG."""
