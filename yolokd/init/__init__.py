"""Starting the student from its teacher: layers paired, channels chosen, weights solved by least squares."""
