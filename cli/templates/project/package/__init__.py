"""Code that the models of this project share."""
