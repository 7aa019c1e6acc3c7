"""What a run will take: a sample of it is really run, and told for the whole by the law of each stage."""
