"""What one would do instead: count words, or adapt without a single label of the target."""
