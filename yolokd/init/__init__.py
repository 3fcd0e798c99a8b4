"""Start the student from its teacher: pair layers, choose channels, solve for weights by least squares."""
