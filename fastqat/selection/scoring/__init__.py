"""What `score_dataset` is made of."""
