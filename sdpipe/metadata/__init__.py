"""What an image says of itself: record, read, replay, verify."""
