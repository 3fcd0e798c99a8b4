"""A teacher's predictions over images without labels, as a data set that can be trained on and looked through."""
