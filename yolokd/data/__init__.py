"""What a training reads besides labels: splits of a data set, unlabelled images, repeatable augmented views."""
