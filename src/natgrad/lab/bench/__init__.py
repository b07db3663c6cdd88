"""``natgrad bench``: step time against SGD's, peak memory, and time to a training loss."""
