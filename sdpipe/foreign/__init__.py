"""What other programs write into their pictures, as a `Record` as far as it is ours to draw."""
